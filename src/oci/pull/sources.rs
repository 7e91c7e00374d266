//! The endpoints of an image with their credentials, tried in turn.

use std::sync::Arc;
use std::time::Duration;

use crate::core::image::ImageRef;
use crate::oci::auth::credentials::Credentials;
use crate::oci::error::{PullError, RegistryError};
use crate::oci::http::registry::worse;
use crate::oci::http::session::{Connection, Session};
use crate::oci::route::endpoint::Endpoint;
use crate::oci::route::proxies::Proxies;

/// Times that one thing is asked for where nobody else can be asked, and where somebody else can.
const ATTEMPTS: u32 = 4;
const ATTEMPTS_OF_MANY: u32 = 2;
/// Longest text about one endpoint in a message about all of them, in characters.
const MAX_TEXT: usize = 200;

/// Who is asked, now and next. What worked once is asked first for everything that follows.
pub(crate) struct Sources<'a> {
    image: &'a ImageRef,
    endpoints: &'a [Endpoint],
    credentials: &'a Credentials,
    proxies: &'a Proxies,
    patience: Duration,
    /// The endpoint in use, and the place of the credential in use among its candidates.
    at: usize,
    candidate: usize,
    session: Option<Session<'a>>,
    /// Endpoints that failed for what is asked for now, and how.
    failures: Vec<(usize, PullError)>,
    /// The refusal of the endpoint in use that says least.
    refused: Option<RegistryError>,
}

impl<'a> Sources<'a> {
    pub(crate) fn new(
        image: &'a ImageRef,
        endpoints: &'a [Endpoint],
        credentials: &'a Credentials,
        proxies: &'a Proxies,
        patience: Duration,
    ) -> Self {
        Self {
            image,
            endpoints,
            credentials,
            proxies,
            patience,
            at: 0,
            candidate: 0,
            session: None,
            failures: Vec::new(),
            refused: None,
        }
    }

    /// Something new is asked for: nobody has failed yet.
    pub(crate) fn begin(&mut self) {
        self.failures.clear();
        self.refused = None;
    }

    /// How often to ask the endpoint in use.
    pub(crate) fn attempts(&self) -> u32 {
        if self.next().is_some() { ATTEMPTS_OF_MANY } else { ATTEMPTS }
    }

    /// The endpoint and credential in use.
    pub(crate) async fn session(&mut self) -> Result<&mut Session<'a>, PullError> {
        if let (None, Some(endpoint)) = (&self.session, self.endpoints.get(self.at)) {
            let connection = Connection::open(self.image, endpoint, self.proxies, self.patience).await?;
            let candidate = endpoint.candidates(self.credentials).get(self.candidate).copied().flatten();
            self.session = Some(Session::new(Arc::new(connection), candidate));
        }
        let nobody = || RegistryError::NotFound { image: self.image.to_string() }.into();
        self.session.as_mut().ok_or_else(nobody)
    }

    /// Goes on to what is left after a failure: another credential, another endpoint.
    ///
    /// **Errors**: what to tell, when nothing is left or nobody else would answer otherwise.
    pub(crate) fn failed(&mut self, error: PullError) -> Result<(), PullError> {
        let error = match error {
            PullError::Registry(RegistryError::InvalidReference(_)) => return Err(error),
            PullError::Registry(refusal) if refusal.depends_on_credentials() => {
                let refusal = worse(self.refused.take(), refusal);
                if self.use_next_credential() {
                    self.refused = Some(refusal);
                    return Ok(());
                }
                PullError::Registry(refusal)
            }
            PullError::Registry(_) | PullError::DigestMismatch { .. } => error,
            // What was proved is the same everywhere, and so is this machine.
            _ => return Err(error),
        };
        self.refused = None;
        self.failures.push((self.at, error));
        match self.next() {
            Some(next) => {
                (self.at, self.candidate, self.session) = (next, 0, None);
                Ok(())
            }
            None => Err(self.told()),
        }
    }

    fn use_next_credential(&mut self) -> bool {
        let Some(endpoint) = self.endpoints.get(self.at) else { return false };
        let candidates = endpoint.candidates(self.credentials);
        let Some(next) = candidates.get(self.candidate + 1) else { return false };
        self.candidate += 1;
        self.session = self.session.take().map(|session| session.with(*next));
        true
    }

    /// The first endpoint that has not failed, besides the one in use.
    fn next(&self) -> Option<usize> {
        let is_left = |place: &usize| *place != self.at && !self.failures.iter().any(|(failed, _)| failed == place);
        (0..self.endpoints.len()).find(is_left)
    }

    /// One error for all: that of the registry itself if it answered, else that of a mirror that answered, else the last.
    fn told(&mut self) -> PullError {
        let mut failures = std::mem::take(&mut self.failures);
        let endpoint = |place: usize| self.endpoints.get(place);
        let answered = |error: &PullError| {
            !matches!(
                error,
                PullError::Registry(
                    RegistryError::Unreachable { .. } | RegistryError::Timeout { .. } | RegistryError::TlsError { .. }
                )
            )
        };
        let of_origin = failures
            .iter()
            .position(|(place, error)| endpoint(*place).is_some_and(|endpoint| endpoint.is_origin) && answered(error));
        let telling = of_origin.or_else(|| failures.iter().position(|(_, error)| answered(error)));
        let (place, main) = failures.remove(telling.unwrap_or(failures.len().saturating_sub(1)));
        let name = |place: usize| endpoint(place).map(Endpoint::describe).unwrap_or_default();
        if failures.is_empty() && endpoint(place).is_some_and(|endpoint| endpoint.is_origin) {
            return main;
        }
        let others = failures.iter().map(|(place, error)| {
            let text: String = error.to_string().chars().take(MAX_TEXT).collect();
            format!("; {}: {text}", name(*place))
        });
        let others = others.collect::<Vec<_>>().concat();
        PullError::Endpoints { main: Box::new(main), at: name(place), others }
    }
}
