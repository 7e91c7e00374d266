//! The loop against a simulated kernel and a scripted API server.

mod away;
mod disk;
mod hanging;
mod making_room;

use std::path::PathBuf;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::*;
use crate::api::NodeModulesConfigSpec;
use crate::worker::facts::Trouble;
use crate::worker::record::kept_plan::KeptPlan;
use crate::worker::record::{Entry, Record, RecordedModule};
use crate::worker::testing::{Loaded, SimulatedKernel, identity, spec};

/// Nothing can be fetched: the registry is away as well.
#[derive(Debug)]
pub(super) struct NoRegistry;

impl Fetch for NoRegistry {
    fn fetch(&self, _: Wanted, _: Option<String>, _: String, _: PathBuf) -> BoxFuture<'static, Result<(), Unready>> {
        async { Err(Trouble::new(NodeReason::ImageUnreachable, "away").into()) }.boxed()
    }
}

fn loaded(kernel: &SimulatedKernel, module: &str) -> Entry {
    let id = format!("{module}1");
    kernel.with(|modules| {
        modules.insert(module.into(), Loaded { id: id.clone(), ..Loaded::default() });
    });
    let identity = identity(&id);
    let modules =
        vec![RecordedModule { name: module.into(), named: true, inserted: true, identity, filesystems: vec![] }];
    Entry { modules, complete: true, ..Entry::of(spec(module, module, 'a', 1)) }
}

/// A folder whose record says that the kernel holds these modules, each for a Module of its name.
pub(super) fn holding(modules: &[&str]) -> (tempfile::TempDir, StateDir, Arc<SimulatedKernel>) {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::open(folder.path()).unwrap().unwrap();
    let kernel = Arc::new(SimulatedKernel::default());
    let mut record = Record::new("boot-1");
    for module in modules {
        record.put(loaded(&kernel, module));
    }
    state.save_record(&record).unwrap();
    (folder, state, kernel)
}
