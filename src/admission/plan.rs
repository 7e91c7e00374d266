//! What happens to an object that is kept.

use super::observe::Present;

/// What happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It is as it should be.
    Nothing,
    /// It is made.
    Create,
    /// It is replaced as a whole. Server-side apply would leave what somebody has added to it, and one condition is enough
    /// to switch a policy off.
    Replace {
        /// The one that was seen.
        resource_version: String,
    },
}

/// The plan for one object; `owner` is the uid of what it goes with.
pub(super) fn plan<S: PartialEq>(wanted: &S, owner: &str, present: Option<&Present<S>>) -> Action {
    match present {
        None => Action::Create,
        Some(present) if present.spec.as_ref() == Some(wanted) && present.owners == [owner] => Action::Nothing,
        Some(present) => Action::Replace { resource_version: present.resource_version.clone() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_written_only_if_it_is_missing_changed_or_no_longer_goes_with_its_owner() {
        let present = |spec: Option<&str>, owners: &[&str]| Present {
            resource_version: "7".to_owned(),
            owners: owners.iter().map(|owner| (*owner).to_owned()).collect(),
            spec: spec.map(str::to_owned),
        };
        let replace = || Action::Replace { resource_version: "7".to_owned() };
        let table = [
            ("missing", None, Action::Create),
            ("as it was written", Some(present(Some("wanted"), &["crd"])), Action::Nothing),
            ("changed", Some(present(Some("other"), &["crd"])), replace()),
            ("emptied", Some(present(None, &["crd"])), replace()),
            ("made by kubectl", Some(present(Some("wanted"), &[])), replace()),
            ("the kind was made again", Some(present(Some("wanted"), &["old"])), replace()),
            ("held by something else too", Some(present(Some("wanted"), &["crd", "other"])), replace()),
        ];
        for (what, present, action) in table {
            assert_eq!(plan(&"wanted".to_owned(), "crd", present.as_ref()), action, "{what}");
        }
    }
}
