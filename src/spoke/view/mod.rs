//! What is kept of each watched object: the fields that some decision reads, nothing else.

mod belongs;
mod claim;
mod config;
mod consumer;
mod daemon_set;
mod images;
mod module;
mod namespaced;
mod node;

pub use belongs::Belongs;
pub use claim::ClaimView;
pub use config::{ConfigView, ReportView};
pub use consumer::ConsumerView;
pub use daemon_set::{DaemonSetView, HOST_MODULES};
pub use images::{ImageFact, ImagesView};
pub use module::{AppliedBy, ModuleFacts, ModuleView, Resolved};
pub use namespaced::{NamespaceView, RoleBindingView, RoleView, ServiceAccountView};
pub use node::NodeView;
