//! How values are read and written where the wire has more than one way to say the same thing.

use serde::{Deserialize, Deserializer};

/// Reads `null` as the type's default value.
///
/// The Go implementation writes `null` for lists that are not set; the API server removes it, files
/// that are read directly still hold it.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads an empty string as absent, for fields in which the Go implementation writes `""` when unset.
pub(crate) fn empty_as_none<'de, D>(deserializer: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::<String>::deserialize(deserializer)?.filter(|value| !value.is_empty()))
}

/// Reads an empty or `null` pull policy as the CRD's default, which the API server applies only to absent ones.
pub(crate) fn pull_policy<'de, D>(deserializer: D) -> Result<String, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(empty_as_none(deserializer)?.unwrap_or_else(default_pull_policy))
}

/// The CRD's default of `imagePullPolicy` in NodeModulesConfig and ModuleImagesConfig.
pub(crate) fn default_pull_policy() -> String {
    "IfNotPresent".into()
}

/// The CRD's default of `dirName`.
pub(crate) fn default_dir_name() -> String {
    "/opt".into()
}

/// Whether a boolean can be left out because absent means false.
#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde asks for
pub(crate) fn is_false(value: &bool) -> bool {
    !*value
}

/// What a schema needs to know of a closed list.
pub(crate) trait ClosedList {
    /// Every name, in the order of declaration.
    const NAMES: &'static [&'static str];
}

/// A closed list of names: an enum whose variants are spelled on the wire as in Rust.
macro_rules! closed_list {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl $name {
            /// Every member, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }

            /// The member with this name, `None` for a name that is not in the list.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|member| member.as_str() == name)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

/// A closed list that stands in a field of a kind of ours. A name that is not in it, of a newer version, is read as the
/// member after `else`, by default `Unknown`, so that the object can still be read.
macro_rules! wire_enum {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident,)+ }) => {
        crate::api::wire::wire_enum! {
            $(#[$meta])*
            pub enum $name { $($(#[$variant_meta])* $variant,)+ } else Unknown
        }
    };
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident,)+ } else $other:ident) => {
        crate::api::wire::closed_list! {
            $(#[$meta])*
            #[derive(Default)]
            pub enum $name { $($(#[$variant_meta])* $variant,)+ }
        }

        impl crate::api::wire::ClosedList for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($variant),)+];
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Ok(Self::from_name(&name).unwrap_or(Self::$other))
            }
        }
    };
}

pub(crate) use {closed_list, wire_enum};
