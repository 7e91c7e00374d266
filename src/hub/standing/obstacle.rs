//! How a cluster stands where something keeps its work from being made or written.

use crate::api::names::ClusterReason;
use crate::hub::view::{FleetModule, Owner};
use crate::runtime::client::{ApiError, Class};

use super::cluster::{Phase, Standing};

impl Standing {
    /// Nobody has looked at the cluster since the ManagedClusterModule changed.
    pub fn pending() -> Self {
        Self::new(Phase::Waiting, ClusterReason::WaitingForApply, "not looked at yet")
    }

    /// A cluster that gets no work yet: the same change would take the module from many others.
    pub fn awaiting_confirmation() -> Self {
        let message = "no cluster gets it newly while taking it from others waits for a confirmation";
        Self::new(Phase::Waiting, ClusterReason::AwaitingConfirmation, message)
    }

    /// There is a work, and no ManagedCluster of its namespace's name can be read.
    pub fn cluster_missing() -> Self {
        let message = "no ManagedCluster of this name can be read; its work stays as it is";
        Self::new(Phase::Unknown, ClusterReason::ClusterMissing, message)
    }

    /// The work is on its way out.
    pub fn deleting() -> Self {
        let message = "the work is being deleted; a new one follows once it is gone";
        Self::new(Phase::Waiting, ClusterReason::Deleting, message)
    }

    /// The work has no JSON form.
    pub fn not_rendered(why: &str) -> Self {
        Self::new(Phase::Degraded, ClusterReason::InvalidSpec, why)
    }

    /// The work of the name is not that of the ManagedClusterModule.
    pub fn foreign(module: &FleetModule, owner: &Owner) -> Self {
        match owner {
            Owner::Module { name, .. } if *name == module.name => {
                let message = "the work of an earlier ManagedClusterModule of this name is not gone yet";
                Self::new(Phase::Waiting, ClusterReason::Deleting, message)
            }
            owner => Self::occupied(owner),
        }
    }

    /// Somebody else has a work of the name.
    pub fn occupied(owner: &Owner) -> Self {
        let whose = match owner {
            Owner::Nobody => "somebody else".to_owned(),
            Owner::Module { name, .. } => format!("ManagedClusterModule {name}"),
            Owner::Other(owner) => owner.to_string(),
        };
        let message = format!("a ManifestWork of this name belongs to {whose}; it is not touched");
        Self::new(Phase::Degraded, ClusterReason::OwnedByOther, &message)
    }

    /// The same cluster while nothing can be rendered from the ManagedClusterModule.
    #[must_use]
    pub fn without_module(self, module: &FleetModule) -> Self {
        let reason = module.fault.as_ref().map_or(ClusterReason::InvalidSpec, |fault| fault.reason);
        let message = "what was sent before stays, until the ManagedClusterModule can be carried out";
        self.because(Phase::Waiting, reason, message)
    }

    /// The same cluster while the Hub does not accept it.
    #[must_use]
    pub fn not_accepted(self) -> Self {
        self.because(Phase::Unknown, ClusterReason::NotAccepted, "the Hub does not accept the cluster")
    }

    /// The same cluster after the server did not take its work.
    #[must_use]
    pub fn refused(self, error: &ApiError) -> Self {
        let message = error.reason();
        match error.class() {
            Class::Invalid | Class::Denied => self.because(Phase::Degraded, ClusterReason::WorkRefused, &message),
            Class::Transient if error.is_not_found() => {
                self.because(Phase::Degraded, ClusterReason::WorkRefused, &message)
            }
            Class::Conflict | Class::Transient => {
                self.because(Phase::Waiting, ClusterReason::WaitingForApply, &format!("not written yet: {message}"))
            }
        }
    }
}
