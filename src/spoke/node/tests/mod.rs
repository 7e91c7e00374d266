//! The planner of nodes: decisions one by one, what policies allow, pods that leave first, and random histories.

mod counting;
mod decisions;
mod hold_back;
mod policies;
mod simulation;
mod warming_up;

use super::observe::{Consumer, ModuleHere, Observed, Want, want};
use super::plan::ConfigAction;
use super::*;
use crate::api::NodeModuleSpec;
use crate::spoke::testing::{ModuleBuilder, a_config, a_module, an_entry, loaded};
use crate::spoke::view::ConfigView;

fn gpu() -> ModuleBuilder {
    a_module("drivers", "gpu", "u1")
}

fn entry() -> NodeModuleSpec {
    an_entry("drivers", "gpu", "u1")
}

fn running() -> ConfigView {
    a_config(vec![entry()], vec![loaded(&entry())])
}
