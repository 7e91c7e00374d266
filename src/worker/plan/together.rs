//! Which jobs may run at the same time: a module whose init function never returns must hold up nobody else.

use std::collections::BTreeMap;
use std::time::Duration;

use super::job::Job;
use super::observed::{Observed, Preparation};
use super::reach::{Reach, RunningJob};
use super::report::{Plan, report};
use crate::api::ModuleState;
use crate::api::names::NodeReason;
use crate::core::kmod::proc_modules::InitState;
use crate::worker::facts::Trouble;
use crate::worker::record::{Owner, Record};

/// A job that is not over after so long is told with the module that it waits for.
const LONG: Duration = Duration::from_secs(30);

/// The jobs that can be begun beside those that run and beside one another, in order. The others are planned anew when
/// something has ended, because the world that they were planned for is another one then.
pub fn startable<'a>(
    jobs: Vec<Job>,
    record: &Record,
    running: impl IntoIterator<Item = &'a Reach>,
) -> Vec<(Job, Reach)> {
    let queue = queue(&jobs, record, running);
    let free = jobs.into_iter().zip(queue).filter(|(_, (_, before))| before.is_none());
    free.map(|(job, (reach, _))| (job, reach)).collect()
}

/// What each job touches, and which one it waits for: its place among those that run, followed by these.
fn queue<'a>(
    jobs: &[Job],
    record: &Record,
    running: impl IntoIterator<Item = &'a Reach>,
) -> Vec<(Reach, Option<usize>)> {
    let mut taken: Vec<Reach> = running.into_iter().cloned().collect();
    let queued = jobs.iter().map(|job| {
        let reach = Reach::of(job, record);
        // A job that waits keeps its place before later ones that meet it.
        let before = taken.iter().position(|other| other.meets(&reach));
        taken.push(reach.clone());
        (reach, before)
    });
    queued.collect()
}

/// A Module with a job that runs gets no second one, and is reported as on its way whatever the kernel shows meanwhile: also
/// one that is not wanted any more and has nothing in the record yet, as it is not gone before the job is over.
pub(super) fn wait_for_running(observed: &Observed, plan: &mut Plan) {
    plan.jobs.retain(|job| !observed.running.contains_key(&job.owner));
    plan.prepare.retain(|wanted| !observed.running.contains_key(&wanted.owner));
    for (owner, job) in &observed.running {
        let Some(spec) = &job.load else { continue };
        if observed.is_taken_back(spec) {
            plan.taken_back.insert(owner.clone());
        }
        if !plan.reports.iter().any(|report| Owner::of(&report.spec) == *owner) {
            let trouble = Trouble::new(NodeReason::Loading, String::new());
            plan.reports.push(report(spec, ModuleState::Loading, trouble, observed.in_kernel(owner)));
        }
    }
    for report in &mut plan.reports {
        let Some(job) = observed.running.get(&Owner::of(&report.spec)) else { continue };
        (report.state, report.reason) = if job.load.is_some() {
            (ModuleState::Loading, NodeReason::Loading)
        } else {
            (ModuleState::Unloading, NodeReason::Unloading)
        };
        report.message.clear();
    }
}

/// Says of every job that cannot be begun yet which Module it waits for, and of one that takes long who waits for it.
pub(super) fn tell_waiting(observed: &Observed, plan: &mut Plan) {
    let running = observed.running.values().map(|job| &job.reach);
    let queue = queue(&plan.jobs, &observed.record, running);
    let owners: Vec<&Owner> = observed.running.keys().chain(plan.jobs.iter().map(|job| &job.owner)).collect();
    let reaches: Vec<&Reach> =
        observed.running.values().map(|job| &job.reach).chain(queue.iter().map(|(reach, _)| reach)).collect();
    let mut waiting: BTreeMap<Owner, (usize, String)> = BTreeMap::new();
    for (job, (reach, before)) in plan.jobs.iter().zip(&queue) {
        let Some(before) = *before else { continue };
        let shared = reaches.get(before).and_then(|other| reach.shares(other)).unwrap_or_default();
        waiting.insert(job.owner.clone(), (before, shared));
    }
    // One whose module is on its way into or out of the kernel by another's job has no job yet.
    for owner in plan.reports.iter().filter(|report| report.state == ModuleState::Loading).map(|r| Owner::of(&r.spec)) {
        if !owners.contains(&&owner)
            && let Some(Preparation::Ready(set)) = observed.prepared.get(&owner).map(|prepared| &prepared.state)
        {
            let passing = set.files.iter().filter(|file| {
                observed.kernel.listed.get(&file.name).is_some_and(|listed| listed.state != InitState::Live)
            });
            let before = passing.filter_map(|file| {
                let place = observed.running.values().position(|job| job.reach.modules.contains(&file.name))?;
                Some((place, format!("module {}", file.name)))
            });
            waiting.extend(before.take(1).map(|before| (owner.clone(), before)));
        }
    }
    for report in &mut plan.reports {
        let owner = Owner::of(&report.spec);
        if let Some(job) = observed.running.get(&owner)
            && observed.now >= job.since + LONG
        {
            let others = waiting.iter().filter(|(_, (before, _))| owners.get(*before) == Some(&&owner));
            let names: Vec<String> = others.map(|(other, _)| other.to_string()).collect();
            report.message = overdue(observed, job, &names);
        } else if let Some((before, shared)) = waiting.get(&owner) {
            match report.state {
                ModuleState::Loading => {
                    (report.state, report.reason) = (ModuleState::Pending, NodeReason::Pending);
                }
                ModuleState::Unloading => {}
                // It is so already, and only to be recorded.
                _ => continue,
            }
            let other = owners.get(*before).map(ToString::to_string).unwrap_or_default();
            report.message = format!("waits for the job of {other}, which is about {shared} too");
        }
    }
}

fn overdue(observed: &Observed, job: &RunningJob, waiting: &[String]) -> String {
    let in_state = |state: InitState| {
        let mut modules = job.reach.modules.iter();
        modules.find(|name| observed.kernel.listed.get(*name).is_some_and(|listed| listed.state == state))
    };
    let seconds = LONG.as_secs();
    let others = match waiting {
        [] => "Modules that share nothing with it go on".to_owned(),
        [one] => format!("{one} waits for it"),
        more => format!("{} wait for it", more.join(", ")),
    };
    if let Some(name) = in_state(InitState::Coming) {
        format!(
            "the init function of module {name} has not returned for more than {seconds} s; the kernel cannot be made \
             to give it up, so if it never returns only a reboot helps; {others}"
        )
    } else if let Some(name) = in_state(InitState::Going) {
        format!(
            "the exit function of module {name} has not returned for more than {seconds} s; the kernel cannot be made \
             to give it up, so if it never returns only a reboot helps; {others}"
        )
    } else {
        format!("this takes more than {seconds} s; {others}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kmod::order::Role::{Named, Needed};
    use crate::worker::plan::plan;
    use crate::worker::testing::{World, file, intent, spec};

    /// `gpu` and `net` both need `base`; `disk` needs nothing.
    fn three() -> World {
        let mut world = World::new();
        world.image('a', vec![file("base", "b1", Needed, &[]), file("gpu", "g1", Named, &["base"])]);
        world.image('a', vec![file("base", "b1", Needed, &[]), file("net", "n1", Named, &["base"])]);
        world.image('a', vec![file("disk", "d1", Named, &[])]);
        world.desired.modules = ["gpu", "net", "disk"].iter().map(|name| spec(name, name, 'a', 1)).collect();
        world
    }

    fn names(jobs: &[(Job, Reach)]) -> Vec<&str> {
        jobs.iter().map(|(job, _)| job.owner.name.as_str()).collect()
    }

    #[test]
    fn jobs_that_share_a_kernel_module_or_a_record_do_not_run_together() {
        let mut world = three();
        let never = tokio_util::sync::CancellationToken::new();
        let first = world.round(&never);
        assert_eq!(first.prepare.len(), 3);
        let jobs = world.plan().jobs;
        assert_eq!(jobs.len(), 3);
        let started = startable(jobs.clone(), &world.record, []);
        assert_eq!(names(&started), ["gpu", "disk"], "net waits for base");
        let disk = &started[1].1;
        assert_eq!(names(&startable(jobs.clone(), &world.record, [disk])), ["gpu"]);
        let gpu = &started[0].1;
        assert_eq!(names(&startable(jobs, &world.record, [gpu])), ["disk"]);
        assert_eq!(world.settle(), ["disk Loaded Loaded", "gpu Loaded Loaded", "net Loaded Loaded"]);

        // To unload `gpu` makes `base`, which it inserted, the other's: that writes about the other.
        world.desired.modules.retain(|entry| entry.name == "disk");
        world.desired.unload = vec![intent("gpu", 1), intent("net", 1)];
        assert_eq!(names(&startable(world.plan().jobs, &world.record, [])), ["gpu"]);
        assert_eq!(world.settle(), ["disk Loaded Loaded"]);
        assert_eq!(world.kernel.names(), ["disk"], "none of the three forgot base");
    }

    #[test]
    fn a_job_that_hangs_keeps_nothing_of_the_node_from_being_put_right() {
        let mut world = three();
        world.kernel.published.lock().unwrap().writable = true;
        world.kernel.search_path = std::sync::Mutex::new(Some(String::new()));
        let firmware = crate::worker::record::Firmware {
            folder: "/fw".into(),
            files: BTreeMap::from([("a.bin".to_owned(), "1".to_owned())]),
        };
        world.firmware.insert("fw".into(), firmware);
        let policy = crate::api::LoadPolicy { publish_on_host: true, ..Default::default() };
        let disk = world.desired.modules.last_mut().unwrap();
        (disk.policy, disk.config.modprobe.firmware_path) = (Some(policy), Some("fw".into()));
        let (gpu, net) = (world.desired.modules.remove(0), world.desired.modules.remove(0));
        assert_eq!(world.settle(), ["disk Loaded Loaded"]);
        // `gpu` hangs and `net` waits for it.
        world.desired.modules.extend([gpu, net]);
        world.round(&tokio_util::sync::CancellationToken::new());
        let (job, reach) = startable(world.plan().jobs, &world.record, []).remove(0);
        world.running.insert(job.owner.clone(), RunningJob::of(&job, reach, world.now));
        world.kernel.published.lock().unwrap().folders.clear();
        *world.kernel.search_path.lock().unwrap() = Some("/elsewhere".into());
        world.record.in_tree.push(crate::worker::record::TakenOut {
            name: "old".into(),
            owner: Owner { uid: "uid-gone".into(), ..job.owner.clone() },
            parameters: String::new(),
            restore: true,
            failures: 0,
        });
        let jobs = world.plan().jobs;
        let started = startable(jobs, &world.record, world.running.values().map(|job| &job.reach));
        let uids: Vec<&str> = started.iter().map(|(job, _)| job.owner.uid.as_str()).collect();
        assert_eq!(uids, ["firmware", "in-tree", "published"]);
    }

    #[test]
    fn a_module_whose_job_runs_gets_no_second_one_and_is_told_with_what_it_waits_for() {
        let mut world = three();
        let never = tokio_util::sync::CancellationToken::new();
        world.round(&never);
        let (job, reach) = startable(world.plan().jobs, &world.record, []).remove(0);
        assert_eq!(job.owner.name, "gpu");
        world.running.insert(job.owner.clone(), RunningJob::of(&job, reach.clone(), world.now));
        let of = |world: &World, module: &str| {
            let plan = plan(&world.observe());
            assert!(plan.jobs.iter().all(|job| job.owner.name != "gpu"), "{:?}", plan.jobs);
            let report = plan.reports.into_iter().find(|report| report.spec.name == module).unwrap();
            format!("{:?} {}: {}", report.state, report.reason.as_str(), report.message)
        };
        let told = |world: &World| of(world, "gpu");
        assert_eq!(told(&world), "Loading Loading: ");
        let waits = "Pending Pending: waits for the job of drivers/gpu, which is about module base too";
        assert_eq!(of(&world, "net"), waits);
        assert_eq!(of(&world, "disk"), "Loading Loading: ");
        world.kernel.with(|modules| {
            let hanging = crate::worker::testing::Loaded {
                id: "b1".into(),
                state: Some(InitState::Coming),
                ..crate::worker::testing::Loaded::default()
            };
            modules.insert("base".into(), hanging);
        });
        world.now += LONG;
        let message = told(&world);
        assert!(message.starts_with("Loading Loading: the init function of module base has not returned"), "{message}");
        assert!(message.ends_with("; drivers/net waits for it"), "{message}");
        assert_eq!(of(&world, "net"), waits);
        world.kernel.with(|modules| modules.get_mut("base").unwrap().state = None);
        assert_eq!(of(&world, "net"), waits);
        assert_eq!(told(&world), "Loading Loading: this takes more than 30 s; drivers/net waits for it");
        world.kernel.with(|modules| modules.get_mut("base").unwrap().state = Some(InitState::Coming));
        // Only an order for all that is wanted of it takes it back.
        let taken_back = |world: &World| plan(&world.observe()).taken_back.len();
        world.desired.unload = vec![intent("gpu", 1)];
        assert_eq!(taken_back(&world), 1);
        world.unkept = Some(Trouble::new(NodeReason::StoreFull, "no room"));
        assert_eq!(taken_back(&world), 0);
        world.unkept = None;
        world.desired.modules.push(spec("gpu", "gpu", 'b', 2));
        assert_eq!(taken_back(&world), 0);
        world.desired.modules.pop();
        world.desired.unload.clear();
        // The others go on: `disk` is loaded, `net` waits for base too.
        let running = world.running.values().map(|job| &job.reach).collect::<Vec<_>>();
        assert_eq!(names(&startable(world.plan().jobs, &world.record, running)), ["disk"]);
        world.running.values_mut().for_each(|job| job.load = None);
        world.kernel.with(|modules| modules.get_mut("base").unwrap().state = Some(InitState::Going));
        let message = told(&world);
        assert!(message.starts_with("Unloading Unloading: the exit function of module base"), "{message}");
    }
}
