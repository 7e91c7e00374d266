//! What has to leave the kernel before a load, or why it stays.

use std::collections::BTreeSet;

use super::loading::{Found, Loading};
use crate::api::names::NodeReason;
use crate::api::{ModuleState, OnChange, OnOtherFile};
use crate::core::kmod::order::Role;
use crate::core::load;
use crate::worker::facts::Trouble;
use crate::worker::plan::desired::Desired;
use crate::worker::plan::job::Step;
use crate::worker::plan::unload::{blocked, modprobe_removes, removal, users_first};
use crate::worker::record::{Entry, Owner};

/// What makes room for a load.
pub(super) struct Room {
    /// All modules that leave, users first.
    pub(super) leaving: Vec<String>,
    /// Those of them that the kernel itself came with.
    pub(super) in_tree: Vec<String>,
    /// The step by which modprobe takes out those of the Module.
    pub(super) modprobe: Option<Step>,
}

impl Loading<'_> {
    /// Modules that must leave before the load, users first; or why they cannot.
    pub(super) fn make_room(&self, stale: &[&str], parameters: Option<String>) -> Result<Room, (ModuleState, Trouble)> {
        let failed = |reason, message: String| Err((ModuleState::Failed, Trouble::new(reason, message)));
        let (mut leaving, mut modprobe) = (Vec::new(), None);
        if let Some(entry) = self.entry.filter(|_| self.is_ordered()) {
            let refused = |trouble| (ModuleState::UnloadFailed, trouble);
            let names = removal(&self.observed.record, entry, &self.observed.kernel).map_err(refused)?;
            // What modprobe takes out, it takes out whole.
            modprobe = modprobe_removes(self.observed, entry, &names);
            leaving = if modprobe.is_some() { names } else { self.without_what_can_stay(names, stale) };
        }
        let listed = &self.observed.kernel.listed;
        let unwanted = load::in_tree(&self.wanted.spec.config);
        let in_tree: Vec<&str> = unwanted
            .iter()
            .map(String::as_str)
            .filter(|name| {
                listed.contains_key(*name) && !leaving.iter().any(|going| going == name) && !self.is_ours(name)
            })
            .collect();
        let mut replaced = self.strangers_to_replace(stale);
        replaced.retain(|name| !leaving.contains(name) && !in_tree.contains(&name.as_str()));
        let going: Vec<&str> = in_tree.into_iter().chain(replaced.iter().map(String::as_str)).collect();
        let all: BTreeSet<&str> = leaving.iter().map(String::as_str).chain(going.iter().copied()).collect();
        if let Some(name) = stale.iter().find(|name| !all.contains(**name)) {
            let own = self.is_ordered() && self.brought(name) && self.others_with(name).next().is_none();
            if let Some(why) = own.then(|| blocked(name, &all, &self.observed.kernel)).flatten() {
                return Err((ModuleState::UnloadFailed, Trouble::new(NodeReason::InUse, why)));
            }
            return Err(self.in_the_way(name, parameters));
        }
        for name in &going {
            if let Some(why) = blocked(name, &all, &self.observed.kernel) {
                if replaced.iter().any(|replaced| replaced == name) {
                    let by = if self.is_published(name) { "" } else { " by policy.onOtherFile" };
                    return failed(NodeReason::InUse, format!("to be replaced{by}: {why}"));
                }
                return failed(NodeReason::InTreeModuleStays, format!("to be removed first: {why}"));
            }
        }
        let going = users_first(going, listed);
        let in_tree = going.iter().filter(|name| unwanted.contains(name)).cloned().collect();
        leaving.extend(going);
        Ok(Room { leaving, in_tree, modprobe })
    }

    /// Another Module that has this module as its own, or of those that this one only needs is to have it.
    fn other_owner(&self, name: &str) -> Option<Owner> {
        let observed = self.observed;
        let names_it = |desired: &&Desired| {
            let owner = desired.owner();
            owner != self.wanted.owner
                && observed.intent(&owner, desired.spec.generation.unwrap_or(0)).is_none()
                && desired.identity.as_ref().is_ok_and(|identity| identity.named.iter().any(|named| named == name))
        };
        let to_have_it =
            || observed.desired.modules.iter().filter(|_| self.only_needs(name)).find(names_it).map(Desired::owner);
        self.others_with(name).next().map(Entry::owner).or_else(to_have_it)
    }

    fn only_needs(&self, name: &str) -> bool {
        self.set.files.iter().any(|file| file.name == name && file.role == Role::Needed)
    }

    /// Of the modules that are in the way, those that no Module brought and that the policy takes out, and those that the
    /// host has loaded of what was published for this Module, with what uses them.
    fn strangers_to_replace(&self, stale: &[&str]) -> Vec<String> {
        let mut published = Vec::new();
        if stale.iter().any(|name| self.is_published(name)) {
            let files = self.set.files.iter().rev().filter(|file| file.role != Role::Optional);
            let free = |name: &&str| self.is_published(name) && self.other_owner(name).is_none();
            let names = files.map(|file| file.name.as_str()).filter(free);
            published = self.without_what_can_stay(users_first(names, &self.observed.kernel.listed), stale);
        }
        if self.policy().on_other_file != OnOtherFile::Replace {
            return published;
        }
        let of_nobody = |name: &&&str| {
            let own = self.entry.and_then(|entry| entry.module(name));
            self.other_owner(name).is_none() && !own.is_some_and(|module| self.is_still(module))
        };
        let strangers = stale.iter().filter(of_nobody).map(|name| (*name).to_owned());
        published.into_iter().chain(strangers).collect()
    }

    /// Why a module that must leave first stays.
    fn in_the_way(&self, name: &str, parameters: Option<String>) -> (ModuleState, Trouble) {
        let failed = |reason, message: String| (ModuleState::Failed, Trouble::new(reason, message));
        let by = self.other_owner(name);
        let parameters = parameters.filter(|_| name == self.main());
        let which = self.set.files.iter().find(|file| file.name == name).map_or_else(String::new, |file| {
            let running = self.observed.kernel.running.get(name).map(|running| running.identity.describe());
            let running = running.unwrap_or_default();
            format!("the kernel runs {name} ({running}), wanted is {}", file.identity.describe())
        });
        let differs = parameters.clone().unwrap_or(which.clone());
        // A Module made again under its name follows the one before, whose file this is.
        let follows =
            |owner: &Owner| (&owner.namespace, &owner.name) == (&self.wanted.owner.namespace, &self.wanted.owner.name);
        if let Some(by) = by.as_ref().filter(|by| !follows(by)) {
            return failed(
                NodeReason::Conflict,
                format!("module {name} belongs to {by}: {differs}{}", self.way_out(name)),
            );
        }
        let own = by.is_some() || self.entry.and_then(|entry| entry.module(name)).is_some_and(|m| self.is_still(m));
        if own && self.policy().on_change == OnChange::OnReboot {
            let message = format!(
                "module {name}: {differs}; policy.onChange is OnReboot: what is loaded stays until the node boots again"
            );
            return (ModuleState::Pending, Trouble::new(NodeReason::WaitingForReboot, message));
        }
        let wait = if own {
            "reloading waits for an order to unload, or for a reboot"
        } else {
            "it was not loaded for this Module and is not touched; unload it, name it in inTreeModulesToRemove, or set \
             policy.onOtherFile to Replace"
        };
        match parameters {
            Some(how) => failed(NodeReason::LoadedOtherParameters, format!("module {name}: {how}; {wait}")),
            None => failed(NodeReason::LoadedOtherFile, format!("{which}; {wait}")),
        }
    }

    /// What helps where another Module has what this one needs as another file.
    fn way_out(&self, name: &str) -> &'static str {
        if self.only_needs(name) { "; delete or change that Module first, or boot the node" } else { "" }
    }

    /// Leaves out of the modules to be removed, which stand users first, those that the new load wants just as they are.
    fn without_what_can_stay(&self, names: Vec<String>, stale: &[&str]) -> Vec<String> {
        let listed = &self.observed.kernel.listed;
        let mut leaving: Vec<String> = Vec::new();
        for name in names.into_iter().rev() {
            let same = self.set.files.iter().any(|file| file.name == name && matches!(self.found(file), Found::Same));
            let uses = leaving.iter().any(|going| listed.get(going).is_some_and(|entry| entry.holders.contains(&name)));
            if !same || uses || stale.contains(&name.as_str()) {
                leaving.push(name);
            }
        }
        leaving.reverse();
        leaving
    }

    /// Whether what is loaded under the name is a wanted file, or in the record.
    fn is_ours(&self, name: &str) -> bool {
        let wanted = self.set.files.iter().any(|file| file.name == name && matches!(self.found(file), Found::Same));
        wanted
            || self.observed.record.entries.iter().any(|e| e.module(name).is_some_and(|module| self.is_still(module)))
    }
}
