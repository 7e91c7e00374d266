//! What is kept of each watched object: the fields that some decision reads, nothing else.

mod claim;
mod config;
mod consumer;
mod images;
mod module;
mod namespaced;
mod node;

pub use claim::ClaimView;
pub use config::{ConfigView, ReportView};
pub use consumer::ConsumerView;
pub use images::{ImageFact, ImagesView};
pub use module::{ModuleFacts, ModuleView, Resolved};
pub use namespaced::{DaemonSetView, NamespaceView, RoleBindingView, RoleView, ServiceAccountView};
pub use node::NodeView;
