//! How what is loaded differs from what is wanted, though the files are the same.

use std::collections::BTreeSet;

use super::loading::Loading;
use crate::core::kmod::params;
use crate::core::load::LoadIdentity;
use crate::worker::plan::desired::Wanted;
use crate::worker::plan::observed::Observed;
use crate::worker::record::{Entry, Firmware};

/// Parameters that are readable and show something else than was asked for.
pub(super) fn drift(observed: &Observed, wanted: &Wanted) -> String {
    let Some(running) = observed.kernel.running.get(wanted.identity.main()) else { return String::new() };
    let mut differing = Vec::new();
    for (name, asked) in params::decode(&wanted.identity.parameters) {
        if let Some(shown) = running.parameters.get(&name)
            && !params::shows(asked.as_deref(), shown)
        {
            differing.push(format!("{name} is `{shown}`, asked for `{}`", asked.unwrap_or_default()));
        }
    }
    if differing.is_empty() { String::new() } else { format!("parameters differ: {}", differing.join(", ")) }
}

impl Loading<'_> {
    /// In words, how the wanted files were loaded in another way than is wanted; `None` if they were not.
    pub(super) fn other_load(&self) -> Option<String> {
        self.other_parameters().or_else(|| self.other_firmware()).or_else(|| self.other_in_tree())
    }

    /// In words, how the loaded module's parameters are other than the wanted ones; `None` if they are not.
    fn other_parameters(&self) -> Option<String> {
        let (asked, arguments) = (&self.wanted.identity.parameters, self.wanted.identity.arguments());
        let recorded = self.observed.record.entries.iter().find_map(|entry| {
            let identity = entry.identity().ok()?;
            let main = entry.module(self.main())?;
            (identity.main() == self.wanted.identity.main() && main.inserted).then_some(identity)
        });
        match recorded {
            Some(recorded) if params::decode(&recorded.parameters) == params::decode(asked) => {
                let other = recorded.arguments() != arguments;
                other.then(|| "it was loaded with other arguments of modprobe than are wanted".to_owned())
            }
            Some(LoadIdentity { parameters, .. }) => {
                Some(format!("it was loaded with parameters `{parameters}`, wanted are `{asked}`"))
            }
            None => Some(drift(self.observed, self.wanted)).filter(|text| !text.is_empty()),
        }
    }

    /// In words, that the module was loaded with other firmware than the wanted one; `None` if it was not.
    fn other_firmware(&self) -> Option<String> {
        let entry = self.entry?;
        let inserted = entry.module(self.wanted.identity.main()).is_some_and(|module| module.inserted);
        let files = |firmware: &Option<Firmware>| firmware.as_ref().map(|firmware| firmware.files.clone());
        (inserted && files(&entry.firmware) != files(&self.set.firmware))
            .then(|| "it was loaded with other firmware than is wanted".to_owned())
    }

    /// In words, that other modules of the kernel itself made room for what this Module, or the one before it of the name,
    /// has loaded; `None` if they did not.
    fn other_in_tree(&self) -> Option<String> {
        let of_the_name = |entry: &&Entry| {
            let (owner, own) = (entry.owner(), &self.wanted.owner);
            (&owner.namespace, &owner.name) == (&own.namespace, &own.name) && entry.module(self.main()).is_some()
        };
        let before = self.entry.or_else(|| self.observed.record.entries.iter().find(of_the_name))?;
        let before = before.identity().ok()?.in_tree;
        let listed = |names: &BTreeSet<String>| {
            if names.is_empty() { "none".to_owned() } else { names.iter().cloned().collect::<Vec<_>>().join(", ") }
        };
        let wanted = &self.wanted.identity.in_tree;
        (before != *wanted).then(|| {
            let (before, wanted) = (listed(&before), listed(wanted));
            format!("it was loaded with inTreeModulesToRemove {before}, wanted is {wanted}")
        })
    }
}
