//! Which digest stands for an image that is named by a tag: what was found once is kept, whatever the tag means later,
//! until another image is asked for or `imageRebuildTriggerGeneration` changes.

use crate::api::names::ImageReason;
use crate::core::hash::hash_bytes;
use crate::core::image::{Digest, ImageRef};

/// Most kernels that nothing runs now and whose digests are remembered: enough for what is silent or on its way from one
/// kernel to the next, and few enough for one object.
pub const KEPT: usize = 256;
/// Characters of a hash that tell the images of one Module apart.
const ID_LENGTH: usize = 16;
/// End of the source of a digest that was found before the trigger changed.
const BEFORE: &str = "-before";

/// An image with its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// `repository@digest`.
    pub image: String,
    /// For which image and trigger the digest was found: see [`source_id`]. Empty where the image is named by digest.
    pub source: String,
}

/// What look-ups say of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing yet, or nothing since the trigger changed.
    Pending,
    /// This digest.
    Found(Digest),
    /// The last look-up failed; before the trigger changed, it was this digest.
    Before(Digest),
    /// Nothing can be said.
    Missing,
}

impl Known {
    /// What is known, from the word and the digest in the status of a ModuleImagesConfig.
    pub fn of(reason: Option<&str>, digest: Option<&str>) -> Self {
        let digest = digest.and_then(|digest| digest.parse().ok());
        match (reason.and_then(ImageReason::from_name), digest) {
            (Some(ImageReason::Pending), _) => Self::Pending,
            (Some(ImageReason::Resolved), Some(digest)) => Self::Found(digest),
            (_, Some(digest)) => Self::Before(digest),
            (_, None) => Self::Missing,
        }
    }
}

/// Identifies the image, as the mapping's template gives it, and the trigger for which a digest was found.
pub fn source_id(image: &str, trigger: Option<i64>) -> String {
    let id = image_id(image);
    trigger.map_or_else(|| id.clone(), |trigger| format!("{id}-{trigger}"))
}

fn image_id(image: &str) -> String {
    let mut id = hash_bytes(image.as_bytes());
    id.truncate(ID_LENGTH);
    id
}

/// The digest for an image, called `name` by the mapping: its own; else that in use (image and [source](Pinned::source))
/// if it is of this trigger; else the one that was found; else that in use if it was found for the image, and if that is a
/// tag, which the older edition has sent, the tag. `None` if there is none.
pub fn pin(
    image: &ImageRef,
    name: &str,
    trigger: Option<i64>,
    known: &Known,
    in_use: Option<(&str, &str)>,
) -> Option<Pinned> {
    if let Some(digest) = image.digest() {
        return Some(Pinned { image: image.with_digest(digest), source: String::new() });
    }
    let (id, source) = (image_id(name), source_id(name, trigger));
    let of_image = |of: &str| of.strip_prefix(&*id).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    let in_use = in_use.filter(|(_, of)| of_image(of));
    let used = |(image, of): (&str, &str)| Pinned { image: image.to_owned(), source: of.to_owned() };
    let is_pinned = |(image, _): &(&str, &str)| image.contains('@');
    let found = |digest: &Digest, source| Pinned { image: image.with_digest(digest), source };
    if let Some(of_trigger) = in_use.filter(|in_use| is_pinned(in_use) && in_use.1 == source) {
        return Some(used(of_trigger));
    }
    match known {
        Known::Found(digest) => Some(found(digest, source)),
        Known::Before(digest) => {
            Some(in_use.filter(is_pinned).map_or_else(|| found(digest, format!("{id}{BEFORE}")), used))
        }
        Known::Pending | Known::Missing => in_use.map(used),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_stays_until_another_image_is_asked_for_or_the_trigger_changes_and_was_answered() {
        let name = "registry.test/gpu:v1";
        let digest = |of: u8| Digest::from_sha256([of; 32]);
        let image = |of: u8| format!("registry.test/gpu@{}", digest(of));
        let (a, b) = (image(1), image(2));
        let other = source_id("registry.test/gpu:v2", None);
        let (none, one) = (source_id(name, None), source_id(name, Some(1)));
        let before = format!("{none}{BEFORE}");
        type Row<'a> = (&'a str, Option<i64>, Known, Option<(&'a str, &'a str)>, Option<(&'a str, &'a str)>);
        let table: &[Row<'_>] = &[
            ("the first answer", None, Known::Found(digest(1)), None, Some((&a, &none))),
            ("no answer", None, Known::Pending, None, None),
            ("the tag moved", None, Known::Found(digest(2)), Some((&a, &none)), Some((&a, &none))),
            ("what is known was lost", None, Known::Missing, Some((&a, &none)), Some((&a, &none))),
            ("another image before", None, Known::Found(digest(2)), Some((&a, &other)), Some((&b, &none))),
            ("another image before, not answered", None, Known::Pending, Some((&a, &other)), None),
            ("triggered, not answered", Some(1), Known::Pending, Some((&a, &none)), Some((&a, &none))),
            ("triggered, answered", Some(1), Known::Found(digest(2)), Some((&a, &none)), Some((&b, &one))),
            ("triggered, answered, moved again", Some(1), Known::Found(digest(1)), Some((&b, &one)), Some((&b, &one))),
            ("triggered, gone", Some(1), Known::Before(digest(1)), Some((&a, &none)), Some((&a, &none))),
            ("the same, in use nowhere", Some(1), Known::Before(digest(1)), None, Some((&a, &before))),
            ("and then found", Some(1), Known::Found(digest(2)), Some((&a, &before)), Some((&b, &one))),
            ("a tag of the older edition", None, Known::Pending, Some((name, &none)), Some((name, &none))),
            ("and its digest", None, Known::Found(digest(1)), Some((name, &none)), Some((&a, &none))),
        ];
        for (what, trigger, known, in_use, expected) in table {
            let pinned = pin(&name.parse().unwrap(), name, *trigger, known, *in_use);
            let expected = expected.map(|(image, source)| Pinned { image: image.into(), source: source.into() });
            assert_eq!(pinned, expected, "{what}");
        }
        let own: ImageRef = format!("{name}@{}", digest(1)).parse().unwrap();
        let pinned = pin(&own, name, Some(1), &Known::Found(digest(2)), Some((&b, &one)));
        assert_eq!(pinned, Some(Pinned { image: a, source: String::new() }));
    }
}
