//! Wanted entries: proved, fetched, loaded, or told why not.

mod differences;
mod loading;
mod room;

use self::differences::drift;
use self::loading::{Found, Loading};
use self::room::Room;
use super::checks::{before_load, memory_for};
use super::desired::Wanted;
use super::in_tree;
use super::job::{Job, Step};
use super::load_set::{LoadFile, LoadSet};
use super::observed::{InKernel, Observed, Preparation};
use super::report::{Plan, report};
use super::unload::{heirs, is_recorded, unload_steps};
use crate::api::names::NodeReason;
use crate::api::{ModuleState, OnChange, OnDrift};
use crate::core::kmod::order::Role;
use crate::core::kmod::proc_modules::InitState;
use crate::worker::facts::Trouble;
use crate::worker::record::firmware::{self, FirmwareView};
use crate::worker::record::{Entry, RecordedModule};

/// Plans for a wanted entry.
pub(super) fn plan(observed: &Observed, wanted: &Wanted, plan: &mut Plan) {
    let entry = observed.record.entry(&wanted.owner).filter(|entry| !entry.unproved);
    if let Some(entry) = entry.filter(|entry| entry.identity().as_ref() == Ok(&wanted.identity))
        && is_there(observed, entry)
    {
        if entry.spec != wanted.spec || !entry.complete {
            // Only how the image is fetched, a policy, the spelling or the generation is another: the kernel is not concerned.
            let steps = vec![Step::write(Entry { spec: wanted.spec.clone(), complete: true, ..entry.clone() })];
            plan.jobs.push(Job { owner: wanted.owner.clone(), identity: Some(wanted.identity.clone()), steps });
        }
        let mut loaded = observed.in_kernel(&wanted.owner);
        if let Some(loaded) = &mut loaded {
            loaded.entry.spec = wanted.spec.clone();
        }
        plan.reports.push(report(&wanted.spec, ModuleState::Loaded, as_it_is(observed, wanted, entry.adopted), loaded));
        return;
    }
    if let Some(trouble) = entry.and_then(|entry| left_missing(observed, wanted, entry)) {
        plan.reports.push(report(&wanted.spec, ModuleState::Failed, trouble, observed.in_kernel(&wanted.owner)));
        return;
    }
    match ready(observed, wanted) {
        Ok(set) => Loading { observed, wanted, entry, set }.plan(plan),
        Err((mut state, mut trouble, start)) => {
            if start {
                plan.prepare.push(wanted.clone());
            }
            // The files are looked at again after a load that failed: until then that is what is told.
            if let Some(failed) = observed.held_back(&wanted.owner, Some(&wanted.identity))
                && state == ModuleState::Pulling
            {
                (state, trouble) = (ModuleState::Failed, failed.clone());
            }
            plan.reports.push(report(&wanted.spec, state, trouble, observed.in_kernel(&wanted.owner)));
        }
    }
}

/// Whether every named module of the entry is live and the recorded file.
fn is_there(observed: &Observed, entry: &Entry) -> bool {
    entry.modules.iter().filter(|module| module.named).all(|module| {
        let live = observed.kernel.listed.get(&module.name).is_some_and(|listed| listed.state == InitState::Live);
        live && observed.kernel.running.get(&module.name).is_some_and(|running| is_recorded(module, &running.identity))
    })
}

/// What to say of a module that somebody else took out and that the policy leaves out; `None` where it is loaded again,
/// or was never there.
fn left_missing(observed: &Observed, wanted: &Wanted, entry: &Entry) -> Option<Trouble> {
    let policy = wanted.spec.policy.unwrap_or_default();
    // Where a change waits for a reboot, it does not come by a module that was taken out either.
    let meant = policy.on_change == OnChange::OnReboot || entry.identity().as_ref() == Ok(&wanted.identity);
    if policy.on_drift != OnDrift::Report || !entry.complete || !meant {
        return None;
    }
    let missing = entry.modules.iter().find(|m| m.named && !observed.kernel.listed.contains_key(&m.name))?;
    let message = format!(
        "module {} was loaded and somebody took it out; policy.onDrift is Report: it is loaded again at the next boot, \
         or when policy.onDrift is Repair",
        missing.name
    );
    Some(Trouble::new(NodeReason::Missing, message))
}

/// How a loaded module is told. A parameter that somebody changed is told whatever `policy.onDrift` says: nothing is taken
/// out for it, and what the module takes while it runs is not known.
fn as_it_is(observed: &Observed, wanted: &Wanted, adopted: bool) -> Trouble {
    let drift = drift(observed, wanted);
    let reason = match (drift.is_empty(), adopted) {
        (false, _) => NodeReason::ParametersDiffer,
        (true, true) => NodeReason::Adopted,
        (true, false) => NodeReason::Loaded,
    };
    Trouble::new(reason, drift)
}

/// The files, or what to report meanwhile and whether to start fetching them.
fn ready<'a>(observed: &'a Observed, wanted: &Wanted) -> Result<&'a LoadSet, (ModuleState, Trouble, bool)> {
    let pulling = |start| {
        let message = format!("fetching {}", wanted.spec.config.container_image);
        Err((ModuleState::Pulling, Trouble::new(NodeReason::Pulling, message), start))
    };
    let Some(prepared) = observed.prepared.get(&wanted.owner) else { return pulling(true) };
    let same_load = prepared.wanted.identity == wanted.identity;
    let same_fetch = prepared.wanted.spec.config == wanted.spec.config
        && prepared.wanted.spec.image_repo_secret == wanted.spec.image_repo_secret
        && prepared.wanted.spec.image_pull_secrets == wanted.spec.image_pull_secrets
        && prepared.runtime == observed.desired.container_runtime
        && same_load;
    match &prepared.state {
        Preparation::Ready(set) if same_load => Ok(set),
        Preparation::Running if same_fetch => pulling(false),
        Preparation::Failed(trouble, retry_at) if same_fetch => {
            // Nothing is known of what could not even be asked for.
            let state = if trouble.reason == NodeReason::Pending { ModuleState::Pending } else { ModuleState::Failed };
            Err((state, trouble.clone(), observed.now >= *retry_at))
        }
        Preparation::Ready(_) | Preparation::Running | Preparation::Failed(..) => pulling(true),
    }
}

impl Loading<'_> {
    fn plan(&self, plan: &mut Plan) {
        let named = || self.set.files.iter().filter(|file| file.role == Role::Named);
        if let Some(file) = self.set.files.iter().find(|file| matches!(self.found(file), Found::Passing)) {
            let message = format!("module {} is starting or ending", file.name);
            return self.tell(plan, ModuleState::Loading, Trouble::new(NodeReason::Loading, message));
        }
        if let Some(trouble) = self.refused_firmware(plan) {
            return self.tell(plan, ModuleState::Failed, trouble);
        }
        let all_same = named().all(|file| matches!(self.found(file), Found::Same));
        let parameters = if all_same { self.other_load() } else { None };
        let mut outdated: Vec<&str> = if parameters.is_some() {
            vec![self.main()]
        } else {
            let others = named().filter(|file| matches!(self.found(file), Found::Other));
            others.map(|file| file.name.as_str()).collect()
        };
        let due = all_same || self.is_ordered();
        let named_goes = !outdated.is_empty();
        outdated.extend(self.outdated_needs().filter(|name| if self.brought(name) { due } else { named_goes }));
        if all_same && outdated.is_empty() {
            return self.adopt(plan);
        }
        let room = match self.make_room(&outdated, parameters) {
            Ok(room) => room,
            Err((state, trouble)) => return self.tell(plan, state, trouble),
        };
        self.load(plan, &room);
    }

    /// Why the firmware cannot be handed to the kernel.
    fn refused_firmware(&self, plan: &Plan) -> Option<Trouble> {
        let firmware = self.set.firmware.as_ref()?;
        if let Some(refusal) = self.observed.firmware.as_ref().and_then(FirmwareView::refusal) {
            return Some(refusal);
        }
        let about_to = plan.jobs.iter().flat_map(|job| &job.steps).filter_map(|step| match step {
            Step::Write(entry) => Some(entry.as_ref()),
            _ => None,
        });
        let others = self.observed.record.entries.iter().chain(about_to).filter_map(|entry| {
            let owner = entry.owner();
            (owner != self.wanted.owner).then_some((owner, entry.firmware.as_ref()?))
        });
        let (name, owner) = firmware::conflict(firmware, others)?;
        let message = format!(
            "firmware {name} of this Module and of {owner} differ, and the kernel knows one file of a name; \
             give one of them another name"
        );
        Some(Trouble::new(NodeReason::Conflict, message))
    }

    /// The step that lets the kernel find the firmware, if the entry or the one before has any.
    fn firmware_step(&self) -> Option<Step> {
        let before = self.entry.is_some_and(|entry| entry.firmware.is_some());
        (before || self.set.firmware.is_some()).then_some(Step::Firmware)
    }

    /// Everything wanted is in the kernel already: it becomes this Module's.
    fn adopt(&self, plan: &mut Plan) {
        let adopted = self.entry.is_none_or(|entry| entry.adopted);
        let entry = Entry { complete: true, ..self.new_entry(adopted, &[]) };
        let trouble = as_it_is(self.observed, self.wanted, entry.adopted);
        let identity = self.identity_of_main();
        plan.jobs.push(Job {
            owner: self.wanted.owner.clone(),
            identity: Some(self.wanted.identity.clone()),
            steps: std::iter::once(Step::write(entry.clone())).chain(self.firmware_step()).collect(),
        });
        let loaded = Some(InKernel { entry, identity });
        plan.reports.push(report(&self.wanted.spec, ModuleState::Loaded, trouble, loaded));
    }

    /// What will be in the kernel for this Module. A module is `inserted` if this or another entry inserted it, or if
    /// it is absent and about to be. One that stays as another file is recorded as that, and as inserted only if this entry
    /// did it.
    fn new_entry(&self, adopted: bool, leaving: &[String]) -> Entry {
        let inserted = |file: &LoadFile| {
            let known =
                self.observed.record.entries.iter().any(|entry| entry.module(&file.name).is_some_and(|m| m.inserted));
            known || !self.observed.kernel.listed.contains_key(&file.name)
        };
        let modules = self.set.files.iter().map(|file| {
            let stays = self.running_other(file).filter(|_| !leaving.contains(&file.name));
            RecordedModule {
                name: file.name.clone(),
                named: file.role == Role::Named,
                inserted: if stays.is_some() { self.brought(&file.name) } else { inserted(file) },
                identity: stays.unwrap_or(&file.identity).clone(),
                filesystems: file.facts.filesystems.clone(),
            }
        });
        let (took_ms, loaded_at) = self.entry.map_or((None, None), |entry| (entry.took_ms, entry.loaded_at));
        let mut modules: Vec<RecordedModule> = modules.collect();
        // What an earlier version of the entry brought stays this Module's as long as it is there and of no other one. It
        // came before.
        let mut earlier = 0;
        for known in self.entry.iter().flat_map(|entry| &entry.modules) {
            let there = self.observed.kernel.listed.contains_key(&known.name)
                && !leaving.contains(&known.name)
                && self.others_with(&known.name).next().is_none();
            if there && (known.named || known.inserted) && !modules.iter().any(|module| module.name == known.name) {
                modules.insert(earlier, RecordedModule { named: false, inserted: true, ..known.clone() });
                earlier += 1;
            }
        }
        // The module itself stands last of those that are named, whatever its soft dependencies load after it.
        if let Some(at) = modules.iter().position(|module| module.name == self.main())
            && let Some(last) = modules.iter().rposition(|module| module.named)
        {
            modules[at..=last.max(at)].rotate_left(1);
        }
        let firmware = self.set.firmware.clone();
        let files = self.set.of_image.clone();
        let generated = self.set.modprobe.as_ref().map(|modprobe| modprobe.folder.clone());
        Entry {
            modules,
            adopted,
            generated,
            took_ms,
            loaded_at,
            firmware,
            files,
            ..Entry::of(self.wanted.spec.clone())
        }
    }

    fn load(&self, plan: &mut Plan, room: &Room) {
        let leaving = &room.leaving;
        let coming = || {
            let files = self.set.files.iter();
            files.filter(|file| matches!(self.found(file), Found::Absent) || leaving.contains(&file.name))
        };
        if let Err(trouble) = before_load(&self.observed.kernel.gates, coming()) {
            return self.tell(plan, ModuleState::Failed, trouble);
        }
        if let Some(trouble) = self.observed.held_back(&self.wanted.owner, Some(&self.wanted.identity)) {
            return self.tell(plan, ModuleState::Failed, trouble.clone());
        }
        // Before anything leaves: what is loaded is not given up for what cannot be loaded.
        let files = coming().map(|file| file.path.clone()).collect();
        let mut steps = vec![Step::Check { memory: memory_for(coming()), files }];
        steps.extend(in_tree::before_load(self.observed, &self.wanted.spec, &room.in_tree));
        steps.extend(room.modprobe.clone());
        steps.extend(unload_steps(leaving, &self.observed.kernel));
        let heirs = self.entry.map(|entry| heirs(&self.observed.record, entry, leaving));
        steps.extend(heirs.into_iter().flatten().map(Step::write));
        let mut entry = self.new_entry(false, leaving);
        for module in entry.modules.iter_mut().filter(|module| leaving.contains(&module.name)) {
            module.inserted = true;
        }
        // Before the kernel gets anything: a crash must not leave a module that nobody remembers.
        steps.push(Step::write(entry));
        steps.extend(self.firmware_step());
        match &self.set.modprobe {
            // Without the module itself missing modprobe would do nothing.
            Some(modprobe) if coming().any(|file| file.name == self.main()) => steps.push(Step::Modprobe {
                arguments: modprobe.arguments.clone(),
                modules: coming().map(|file| file.name.clone()).collect(),
                removes: false,
            }),
            _ => steps.extend(coming().map(|file| {
                let own = if file.name == self.main() { self.wanted.identity.parameters.as_str() } else { "" };
                let parameters = format!("{} {own}", file.preset).trim().to_owned();
                Step::Load { file: file.clone(), parameters }
            })),
        }
        plan.jobs.push(Job { owner: self.wanted.owner.clone(), identity: Some(self.wanted.identity.clone()), steps });
        self.tell(plan, ModuleState::Loading, Trouble::new(NodeReason::Loading, String::new()));
    }

    fn tell(&self, plan: &mut Plan, state: ModuleState, trouble: Trouble) {
        plan.reports.push(report(&self.wanted.spec, state, trouble, self.observed.in_kernel(&self.wanted.owner)));
    }
}
