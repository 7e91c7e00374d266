//! The node side: drives the kernel of one node and reports what it really holds.
//!
//! The worker watches its own NodeModulesConfig only. What stands in `spec.modules` is loaded, what stands in
//! `spec.unload` is taken out, and nothing else is touched: a missing object, a lost API server, a restart of
//! the worker or its end unload nothing. It asks the kernel, never its memory, and says so in the status.
//!
//! The rooms, from the ground up; each uses only those before it:
//!
//! - [`facts`] are words: what is seen of a node and what is wrong with it. [`module_file`] reads one module's file.
//! - [`record`] is what is in the kernel on behalf of Modules, and what follows from that alone. Pure.
//! - [`plan`] decides: what is to be done and told, and what follows from the end of a job. Pure.
//! - [`store`] is the worker's own folder: the record, the kept plan, unpacked images, links to firmware.
//! - [`kernel`] is the kernel's modules; [`image`] brings an image onto the node and reads what must be loaded of it;
//!   [`host`] is files of the host: firmware, what is published, modules that the kernel came with.
//! - [`observe`] looks at all of them, [`apply`] carries jobs out, [`report`] tells. None of the three decides.
//! - [`agent`] connects them and stays; [`once`] is a single pass before the kubelet, without API server and registry.
//!
//! Words of our own: a *job* is steps for one Module; its *reach* is what it touches, and jobs whose reaches meet wait for
//! one another. A module *makes room* when it leaves so that another can come; what is given up for a load that then fails
//! *gave way*. *Heirs* are Modules to which a module falls whose Module leaves. A module is *passing* while it is starting
//! or ending. A load is *taken back* by an order that came while it ran. What the disk could not keep is *held*.

pub mod agent;
pub mod apply;
pub mod facts;
pub mod host;
pub mod image;
pub mod kernel;
pub mod module_file;
pub mod node;
pub mod observe;
pub mod once;
pub mod plan;
pub mod record;
pub mod report;
pub mod settings;
mod start;
pub mod store;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use kube::Client;
use tokio_util::sync::CancellationToken;

use self::agent::Agent;
use self::host::linux::LinuxHost;
use self::image::fetch::RegistryFetch;
use self::kernel::linux::LinuxKernel;
pub use self::settings::{Network, NodeCredentialSettings, WorkerSettings};
pub use self::start::{Error, Turn};

/// Runs the worker until `shutdown`.
///
/// At shutdown a step that the kernel has begun is finished, and so is a job that has begun to take something out; nothing
/// else is unloaded. A second worker on the same node waits until the first has gone.
pub async fn run(
    settings: WorkerSettings,
    client: Client,
    turn: Turn,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let Some(state) = start::lock(&settings, &turn, &shutdown).await? else { return Ok(()) };
    let kernel = Arc::new(LinuxKernel::of(&settings));
    let host = Arc::new(LinuxHost::of(&settings));
    let fetch = Arc::new(RegistryFetch::new(client.clone(), &settings));
    Agent::new(settings, kernel, host, fetch, state, client, shutdown)?.run().await
}
