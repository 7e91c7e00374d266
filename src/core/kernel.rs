//! Kernel releases as nodes report them (`status.nodeInfo.kernelVersion`, `uname -r`).

use std::fmt;
use std::sync::Arc;

/// The longest release that is accepted, in bytes.
///
/// Linux itself stops at 64 (`__NEW_UTS_LEN`); the room above that is for nodes of other systems.
pub const MAX_LENGTH: usize = 128;

/// A kernel release that can be the name of a folder below `/lib/modules`.
///
/// Guaranteed, also without one trailing `+`: not empty, at most [`MAX_LENGTH`] bytes, no white space, no control
/// characters, no `/`, neither `.` nor `..`.
/// The text is kept as it was given; comparing and ordering use that text.
/// A `+` is legal everywhere; for choosing a kernel mapping one at the end does not count, see
/// [`KernelVersion::trimmed`]. Clones share the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelVersion(Arc<str>);

/// Why a text is not a kernel release, or lacks the parts that were asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no text at all.
    #[error("kernel version is empty")]
    Empty,
    /// More than [`MAX_LENGTH`] bytes.
    #[error("kernel version {value:?} has {length} bytes, more than {MAX_LENGTH}")]
    TooLong {
        /// The first [`MAX_LENGTH`] characters of what was given.
        value: String,
        /// Bytes that were given.
        length: usize,
    },
    /// White space, a control character or a slash.
    #[error("kernel version {value:?} holds the character {character:?}, which no kernel release can have")]
    Character {
        /// What was given.
        value: String,
        /// The first such character.
        character: char,
    },
    /// `.`, `..` or nothing beside a `+`.
    #[error("kernel version {value:?} cannot be a folder below /lib/modules")]
    NotAFolder {
        /// What was given.
        value: String,
    },
    /// Fewer than three parts, where X, Y and Z were asked for.
    #[error("kernel version {value:?} has {found} of the three parts X.Y.Z (parts end at '.', ',' or '-')")]
    TooFewParts {
        /// What was given.
        value: String,
        /// Parts found.
        found: usize,
    },
}

/// The first three parts of a kernel release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// `6` of `6.3.5-200.fc38.x86_64`.
    pub x: String,
    /// `3` of `6.3.5-200.fc38.x86_64`.
    pub y: String,
    /// `5` of `6.3.5-200.fc38.x86_64`.
    pub z: String,
}

impl Parts {
    /// The three parts joined with dots, `6.3.5` for `6.3.5-200.fc38.x86_64`.
    pub fn xyz(&self) -> String {
        format!("{}.{}.{}", self.x, self.y, self.z)
    }
}

/// A release without one trailing `+`: kernels of a modified source tree have one, mappings and `NodeModulesConfigs` do
/// not.
pub fn trimmed(release: &str) -> &str {
    release.strip_suffix('+').unwrap_or(release)
}

/// Under which names an image may hold the folder of a release: as it is, then with or without one trailing `+`.
pub fn spellings(release: &str) -> [String; 2] {
    let other = release.strip_suffix('+').map_or_else(|| format!("{release}+"), ToOwned::to_owned);
    [release.to_owned(), other]
}

impl KernelVersion {
    /// Reads a kernel release.
    ///
    /// # Errors
    /// Names the value where it is empty, too long, holds white space, a control character or `/`, or is `.` or `..`.
    pub fn parse(value: &str) -> Result<Self, Error> {
        if value.is_empty() {
            return Err(Error::Empty);
        }
        if value.len() > MAX_LENGTH {
            return Err(Error::TooLong {
                // An error message is no place for a megabyte of foreign text.
                value: value.chars().take(MAX_LENGTH).collect(),
                length: value.len(),
            });
        }
        if let Some(character) = value.chars().find(|c| c.is_whitespace() || c.is_control() || *c == '/') {
            return Err(Error::Character { value: value.to_owned(), character });
        }
        if matches!(trimmed(value), "" | "." | "..") {
            return Err(Error::NotAFolder { value: value.to_owned() });
        }
        Ok(Self(value.into()))
    }

    /// The release as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The release without one trailing `+`: the form that kernel mappings, templates and `NodeModulesConfigs` use.
    ///
    /// Never empty.
    pub fn trimmed(&self) -> &str {
        trimmed(&self.0)
    }

    /// The same kernel as works and `NodeModulesConfigs` name it: [`trimmed`](Self::trimmed).
    #[must_use]
    pub fn without_plus(&self) -> Self {
        let trimmed = self.trimmed();
        if trimmed.len() == self.0.len() { self.clone() } else { Self(trimmed.into()) }
    }

    /// The same release with its text from `shared`, which keeps equal texts once.
    #[must_use]
    pub fn sharing(&self, shared: impl FnOnce(&str) -> Arc<str>) -> Self {
        Self(shared(&self.0))
    }

    /// The trimmed release with every character outside `A-Z a-z 0-9 - . _` replaced by `_`.
    ///
    /// This is the form that is put into image names, because a tag may hold nothing else.
    pub fn normalised(&self) -> String {
        self.trimmed()
            .chars()
            .map(|c| match c {
                'A'..='Z' | 'a'..='z' | '0'..='9' | '-' | '.' | '_' => c,
                _ => '_',
            })
            .collect()
    }

    /// The first three parts of the normalised release, which end at `.`, `,` or `-`.
    ///
    /// # Errors
    /// [`Error::TooFewParts`] with the value where there are fewer.
    pub fn parts(&self) -> Result<Parts, Error> {
        let normalised = self.normalised();
        let parts: Vec<&str> = normalised.split(['.', ',', '-']).collect();
        match parts.as_slice() {
            [x, y, z, ..] => Ok(Parts { x: (*x).to_owned(), y: (*y).to_owned(), z: (*z).to_owned() }),
            _ => Err(Error::TooFewParts { value: self.as_str().to_owned(), found: parts.len() }),
        }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for KernelVersion {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self, Error> {
        Self::parse(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_the_forms_that_mappings_images_and_names_need() {
        // given, trimmed, normalised, XYZ
        let table = [
            ("6.3.5-200.fc38.x86_64", "6.3.5-200.fc38.x86_64", "6.3.5-200.fc38.x86_64", Some("6.3.5")),
            (
                "6.12.117+deb12-cloud-amd64",
                "6.12.117+deb12-cloud-amd64",
                "6.12.117_deb12-cloud-amd64",
                Some("6.12.117_deb12"),
            ),
            ("6.1.0+", "6.1.0", "6.1.0", Some("6.1.0")),
            ("6.1.0++", "6.1.0+", "6.1.0_", Some("6.1.0_")),
            ("6.1-RC_", "6.1-RC_", "6.1-RC_", Some("6.1.RC_")),
            ("6.1", "6.1", "6.1", None),
            ("kernel", "kernel", "kernel", None),
            ("6,1,0", "6,1,0", "6_1_0", None),
            ("ü.ü.ü", "ü.ü.ü", "_._._", Some("_._._")),
        ];
        for (given, trimmed, normalised, xyz) in table {
            let kernel = KernelVersion::parse(given).unwrap();
            assert_eq!(kernel.as_str(), given);
            assert_eq!(kernel.trimmed(), trimmed, "{given}");
            assert_eq!(kernel.without_plus().as_str(), trimmed, "{given}");
            assert_eq!(kernel.normalised(), normalised, "{given}");
            assert_eq!(kernel.parts().ok().map(|p| p.xyz()).as_deref(), xyz, "{given}");
            assert!(!kernel.normalised().contains('+'), "{given}");
        }
        assert_eq!(spellings("6.1.0+rt"), ["6.1.0+rt", "6.1.0+rt+"]);
        assert_eq!(spellings("6.1.0+"), ["6.1.0+", "6.1.0"]);
    }

    #[test]
    fn a_release_that_no_node_can_run_is_refused_with_its_value() {
        let table = [
            ("", "kernel version is empty".to_owned()),
            ("6.1 0", r#"kernel version "6.1 0" holds the character ' ', which no kernel release can have"#.to_owned()),
            (
                "6.1\n",
                r#"kernel version "6.1\n" holds the character '\n', which no kernel release can have"#.to_owned(),
            ),
            (
                "../6.1",
                r#"kernel version "../6.1" holds the character '/', which no kernel release can have"#.to_owned(),
            ),
            ("..", r#"kernel version ".." cannot be a folder below /lib/modules"#.to_owned()),
            ("+", r#"kernel version "+" cannot be a folder below /lib/modules"#.to_owned()),
            ("..+", r#"kernel version "..+" cannot be a folder below /lib/modules"#.to_owned()),
        ];
        for (given, message) in table {
            assert_eq!(KernelVersion::parse(given).unwrap_err().to_string(), message);
        }
        let long = "6".repeat(MAX_LENGTH + 1);
        assert_eq!(
            KernelVersion::parse(&long),
            Err(Error::TooLong { value: "6".repeat(MAX_LENGTH), length: MAX_LENGTH + 1 })
        );
        assert!(KernelVersion::parse(&long[..MAX_LENGTH]).is_ok());
    }

    #[test]
    fn missing_parts_are_told_with_the_value() {
        let kernel = KernelVersion::parse("6.1+").unwrap();
        assert_eq!(
            kernel.parts().unwrap_err().to_string(),
            r#"kernel version "6.1+" has 2 of the three parts X.Y.Z (parts end at '.', ',' or '-')"#
        );
    }
}
