//! What may go wrong between an image's name and its files, with the reason by which each fault is told, and whether
//! asking again may help.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::api::names::{ImageReason, NodeReason};
use crate::core::image::{Digest, ParseError};
use crate::oci::limits::Platform;

/// Why a registry gave no answer. One variant for one reason; only [`RegistryError::NotFound`] says that an image is missing.
///
/// No message holds a credential, a token or a URL with a query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Something that is a registry said that the image is not there.
    #[error("image {image} does not exist in its registry")]
    NotFound {
        /// The image as asked for.
        image: String,
    },
    /// The registry or its token server wants other credentials; registries hide missing images behind this, too.
    #[error("image {image}: the registry wants other credentials than the ones given ({tried})")]
    Unauthorized {
        /// The image as asked for.
        image: String,
        /// What was tried, in words: anonymous, or whose credentials were sent.
        tried: String,
    },
    /// The registry knows who asks, and refuses.
    #[error("image {image}: the registry refuses access ({tried})")]
    Forbidden {
        /// The image as asked for.
        image: String,
        /// What was tried, in words.
        tried: String,
    },
    /// The registry wants fewer requests.
    #[error("image {image}: the registry wants fewer requests")]
    RateLimited {
        /// The image as asked for.
        image: String,
        /// How long to wait, where the registry says so.
        retry_after: Option<Duration>,
    },
    /// The registry or its token server failed.
    #[error("image {image}: the registry failed with status {status}")]
    ServerError {
        /// The image as asked for.
        image: String,
        /// The HTTP status, 500 to 599.
        status: u16,
        /// How long to wait, where the registry says so.
        retry_after: Option<Duration>,
    },
    /// No answer, or not all of it, in time.
    #[error("image {image}: the registry did not answer within {} ms", after.as_millis())]
    Timeout {
        /// The image as asked for.
        image: String,
        /// The time that was given.
        after: Duration,
    },
    /// The name does not resolve, nothing listens, or the connection broke.
    #[error("image {image}: the registry {registry} cannot be reached: {why}")]
    Unreachable {
        /// The image as asked for.
        image: String,
        /// `host[:port]` of the registry.
        registry: String,
        /// What the system says.
        why: String,
    },
    /// The certificate is not trusted, or the other side speaks no TLS.
    #[error("image {image}: no trusted connection to the registry {registry}: {why}")]
    TlsError {
        /// The image as asked for.
        image: String,
        /// `host[:port]` of the registry.
        registry: String,
        /// What the TLS library says.
        why: String,
    },
    /// The image's name is none.
    #[error(transparent)]
    InvalidReference(#[from] ParseError),
    /// The answer is no answer to the question.
    #[error("image {image}: the registry's answer cannot be used: {why}")]
    InvalidResponse {
        /// The image as asked for.
        image: String,
        /// What is wrong with it.
        why: String,
    },
}

impl RegistryError {
    /// The reason of a look-up.
    pub fn reason(&self) -> ImageReason {
        match self {
            Self::NotFound { .. } => ImageReason::NotFound,
            Self::Unauthorized { .. } => ImageReason::Unauthorized,
            Self::Forbidden { .. } => ImageReason::Forbidden,
            Self::RateLimited { .. } => ImageReason::RateLimited,
            Self::ServerError { .. } => ImageReason::RegistryError,
            Self::Timeout { .. } => ImageReason::Timeout,
            Self::Unreachable { .. } => ImageReason::Unreachable,
            Self::TlsError { .. } => ImageReason::TlsError,
            Self::InvalidReference(_) => ImageReason::InvalidReference,
            Self::InvalidResponse { .. } => ImageReason::InvalidResponse,
        }
    }

    /// How long the registry asks to wait, where it does.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::ServerError { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same question may get another answer with other credentials.
    pub(crate) fn depends_on_credentials(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. } | Self::Unauthorized { .. } | Self::Forbidden { .. } | Self::RateLimited { .. }
        )
    }

    /// Whether the same question may get another answer within seconds.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. } | Self::ServerError { .. } | Self::Timeout { .. } | Self::Unreachable { .. }
        )
    }
}

/// Why there is no tree. One variant for one reason.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry gave no answer; see there.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image is named by a tag, which may mean something else tomorrow.
    #[error("image {image} is not named by digest: resolve it first")]
    NotPinned {
        /// The image as asked for.
        image: String,
    },
    /// The image has nothing for this machine.
    #[error("the image is not for {wanted}, only for {}", offered.join(", "))]
    PlatformMissing {
        /// The platform of this machine.
        wanted: Platform,
        /// The platforms that the image has, `os/architecture`, in its order.
        offered: Vec<String>,
    },
    /// What came is not what the digest names.
    #[error("{what} has the digest {actual}, not {expected}")]
    DigestMismatch {
        /// Manifest, configuration or layer.
        what: &'static str,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The image holds something that must not be unpacked.
    #[error("the image cannot be unpacked: {}: {why}", path.display())]
    UnsafeImage {
        /// The path inside the image.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The image is larger than the limits allow.
    #[error("the image is too large: more than {limit} {what}")]
    ImageTooLarge {
        /// What there is too much of, in words.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The image breaks its format.
    #[error("the image cannot be read: {why}")]
    InvalidImage {
        /// What is wrong with it.
        why: String,
    },
    /// Several endpoints were asked, or one that is not the registry itself, and none had it.
    #[error("{main} (asked at {at}{others})")]
    Endpoints {
        /// What tells most.
        main: Box<PullError>,
        /// Where that was said.
        at: String,
        /// What the others said, each after a semicolon.
        others: String,
    },
    /// The disk has less room than the image needs at least.
    #[error(
        "the image needs {needed} bytes at least, and there is room for {room} in {}, beside a reserve that stays free; \
         make room there",
        folder.display()
    )]
    NoSpace {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that may be used.
        room: u64,
        /// Where.
        folder: PathBuf,
    },
    /// Our own disk.
    #[error("{} cannot be written", path.display())]
    Storage {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The caller has given up; nobody sees this.
    #[error("unpacking was given up")]
    Cancelled,
}

impl PullError {
    /// The reason on a node.
    pub fn reason(&self) -> NodeReason {
        match self {
            // A refusal is never the reason of an image that resolved, which alone has none.
            Self::Registry(error) => NodeReason::from_image(error.reason()).unwrap_or(NodeReason::ImageInvalidResponse),
            Self::NotPinned { .. } => NodeReason::ImageInvalidReference,
            Self::PlatformMissing { .. } => NodeReason::ImagePlatformMissing,
            Self::DigestMismatch { .. } => NodeReason::DigestMismatch,
            Self::UnsafeImage { .. } => NodeReason::UnsafeImage,
            Self::ImageTooLarge { .. } => NodeReason::ImageTooLarge,
            Self::InvalidImage { .. } => NodeReason::ImageInvalidResponse,
            Self::Endpoints { main, .. } => main.reason(),
            Self::NoSpace { .. } => NodeReason::StoreFull,
            Self::Storage { source, .. } if is_full(source) => NodeReason::StoreFull,
            Self::Storage { .. } => NodeReason::StoreFailed,
            Self::Cancelled => NodeReason::ImageTimeout,
        }
    }

    /// Whether the same request always ends so: its name says it, or bytes that were proved by digest. It is of no use to
    /// make it again until another image is asked for or another worker asks.
    ///
    /// Bytes that are not those of the digest prove nothing about the image: whoever sent them may be mended.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NotPinned { .. }
            | Self::PlatformMissing { .. }
            | Self::UnsafeImage { .. }
            | Self::ImageTooLarge { .. }
            | Self::InvalidImage { .. }
            | Self::Registry(RegistryError::InvalidReference(_)) => true,
            Self::Endpoints { main, .. } => main.is_permanent(),
            Self::Registry(_)
            | Self::DigestMismatch { .. }
            | Self::NoSpace { .. }
            | Self::Storage { .. }
            | Self::Cancelled => false,
        }
    }
}

/// Whether there was no room to write.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
