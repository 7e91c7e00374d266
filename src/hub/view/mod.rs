//! What the Hub's stores keep of each kind: the fields that are read, nothing else.

mod cluster;
pub mod feedback;
mod fleet_module;
mod images;
mod work;

pub use cluster::{Cluster, Kernels};
pub use fleet_module::{Fault, FleetModule, Revision};
pub use images::{ImageFact, Images};
pub use work::{Applied, Feedback, Nodes, Owner, Report, Said, Work, fingerprint, rendered_hash};
