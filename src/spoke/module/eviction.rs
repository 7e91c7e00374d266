//! Whether the deletion of a Module is an order, or OCM's agent has lost the Hub that the Module came from.
//!
//! The agent evicts what it applied once it finds no work for it: its Hub is gone, was restored from a backup, or is another
//! one. It writes `status.evictionStartTime`, and deletes after a grace period. The end of a work by somebody's wish is
//! another way: the work stays on the Hub until what was applied is gone, and there is no such time.

use kube::{Api, Client, ResourceExt};

use crate::api::ocm::AppliedManifestWork;
use crate::runtime::client::{ApiError, within};
use crate::spoke::outcome::Deletion;
use crate::spoke::view::AppliedBy;

/// What the API server says of whose wish the deletion is.
pub(super) async fn ask(client: &Client, owner: &AppliedBy) -> Result<Deletion, ApiError> {
    let api: Api<AppliedManifestWork> = Api::all(client.clone());
    let found = within(|| format!("read AppliedManifestWork {}", owner.name), api.get(&owner.name)).await;
    match found {
        Ok(found) => Ok(deletion(Some(&found), owner)),
        Err(error) if error.is_not_found() => Ok(deletion(None, owner)),
        Err(error) => Err(error),
    }
}

/// An owner that is gone has ordered nothing: while a work ends, it stays until the Module is gone.
fn deletion(found: Option<&AppliedManifestWork>, owner: &AppliedBy) -> Deletion {
    let owner = found.filter(|found| found.uid().as_deref() == Some(&*owner.uid));
    let evicts =
        owner.is_none_or(|owner| owner.status.as_ref().is_some_and(|status| status.eviction_start_time.is_some()));
    if evicts { Deletion::Evicted } else { Deletion::Ordered }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_an_owner_that_is_there_and_evicts_nothing_orders() {
        let owner = AppliedBy { name: "a".into(), uid: "u1".into() };
        let of = |uid: &str, status: serde_json::Value| -> AppliedManifestWork {
            serde_json::from_value(json!({
                "apiVersion": "work.open-cluster-management.io/v1", "kind": "AppliedManifestWork",
                "metadata": {"name": "a", "uid": uid}, "spec": {"hubHash": "h", "manifestWorkName": "w"},
                "status": status,
            }))
            .unwrap()
        };
        let evicting = json!({"evictionStartTime": "2026-01-01T00:00:00Z"});
        for (what, found, expected) in [
            ("there", Some(of("u1", json!({}))), Deletion::Ordered),
            ("there, never reported", Some(of("u1", json!(null))), Deletion::Ordered),
            ("evicting", Some(of("u1", evicting)), Deletion::Evicted),
            ("another one", Some(of("u2", json!({}))), Deletion::Evicted),
            ("gone", None, Deletion::Evicted),
        ] {
            assert_eq!(deletion(found.as_ref(), &owner), expected, "{what}");
        }
    }
}
