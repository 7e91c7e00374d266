//! Which digest stands for an image that is named by a tag: what was found once is kept, whatever the tag means later,
//! until another image is asked for or `imageRebuildTriggerGeneration` changes.

use crate::core::hash::hash_bytes;
use crate::core::image::{Digest, ImageRef};

/// Characters of a hash that tell the images of one Module apart.
const ID_LENGTH: usize = 16;
/// End of the source of a digest that was found before the trigger changed.
const BEFORE: &str = "-before";

/// An image with its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// `repository@digest`.
    pub image: String,
    /// For which image and trigger the digest was found: see [`source_id`].
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

/// The digest for an image: that in use (`in_use`: images with the [source](Pinned::source) of each) if it is of this
/// trigger; else the one that was found; else any in use that was found for the image, and if that is a tag, which
/// the older edition has sent, the tag. `None` if there is none.
pub fn pin(
    image: &ImageRef,
    name: &str,
    trigger: Option<i64>,
    known: &Known,
    in_use: &[(&str, &str)],
) -> Option<Pinned> {
    let (id, source) = (image_id(name), source_id(name, trigger));
    let used = |fits: &dyn Fn(&str) -> bool, pinned: bool| {
        let (image, source) = in_use.iter().find(|(image, of)| fits(of) && (!pinned || image.contains('@')))?;
        Some(Pinned { image: (*image).to_owned(), source: (*source).to_owned() })
    };
    let found = |digest: &Digest, source| Some(Pinned { image: image.with_digest(digest), source });
    let of_image = |of: &str| of.strip_prefix(&*id).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    used(&|of| of == source, true).or_else(|| match known {
        Known::Found(digest) => found(digest, source.clone()),
        Known::Before(digest) => used(&of_image, true).or_else(|| found(digest, format!("{id}{BEFORE}"))),
        Known::Pending | Known::Missing => used(&of_image, false),
    })
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
        type Row<'a> = (&'a str, Option<i64>, Known, &'a [(&'a str, &'a str)], Option<(&'a str, &'a str)>);
        let table: &[Row<'_>] = &[
            ("the first answer", None, Known::Found(digest(1)), &[], Some((&a, &none))),
            ("no answer", None, Known::Pending, &[], None),
            ("the tag moved", None, Known::Found(digest(2)), &[(&a, &none)], Some((&a, &none))),
            ("what is known was lost", None, Known::Missing, &[(&a, &none)], Some((&a, &none))),
            ("another image before", None, Known::Found(digest(2)), &[(&a, &other)], Some((&b, &none))),
            ("triggered, not answered", Some(1), Known::Pending, &[(&a, &none)], Some((&a, &none))),
            ("triggered, answered", Some(1), Known::Found(digest(2)), &[(&a, &none)], Some((&b, &one))),
            ("triggered, answered, moved again", Some(1), Known::Found(digest(1)), &[(&b, &one)], Some((&b, &one))),
            ("triggered, gone from the registry", Some(1), Known::Before(digest(1)), &[(&a, &none)], Some((&a, &none))),
            ("the same, in use nowhere", Some(1), Known::Before(digest(1)), &[], Some((&a, &before))),
            ("a tag of the older edition", None, Known::Pending, &[(name, &none)], Some((name, &none))),
            ("and its digest", None, Known::Found(digest(1)), &[(name, &none)], Some((&a, &none))),
            ("and then found", Some(1), Known::Found(digest(2)), &[(&a, &before)], Some((&b, &one))),
        ];
        for (what, trigger, known, in_use, expected) in table {
            let pinned = pin(&name.parse().unwrap(), name, *trigger, known, in_use);
            let expected = expected.map(|(image, source)| Pinned { image: image.into(), source: source.into() });
            assert_eq!(pinned, expected, "{what}");
        }
    }
}
