//! In which order modules must be handed to the kernel.

use std::collections::{BTreeMap, BTreeSet};

/// Where a module's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// In the image.
    Image,
    /// Among the kernel's own modules, on the host.
    Host,
}

/// What is known of one module that could be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where its file is.
    pub source: Source,
    /// Modules that must be there before it, in the order of loading.
    pub needs: Vec<String>,
    /// Modules that should be loaded before it where they exist.
    pub soft_before: Vec<String>,
    /// Modules that should be loaded after it where they exist.
    pub soft_after: Vec<String>,
}

/// All modules that could be loaded, by name as the kernel has it. Those of the image hide those of the host.
pub type Candidates = BTreeMap<String, Candidate>;

/// Why a module is in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The user named it.
    Named,
    /// A named one needs it.
    Needed,
    /// It is loaded if it can be; failing to is no failure.
    Optional,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Name as the kernel has it.
    pub name: String,
    /// Where its file is.
    pub source: Source,
    /// Why it is here.
    pub role: Role,
}

/// No order can be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A module that the user named is not in the image.
    #[error("the image holds no module `{0}`")]
    NotFound(String),
    /// A module that is needed is nowhere.
    #[error("module `{by}` needs `{name}`, which is neither in the image nor among the kernel's own modules")]
    Missing {
        /// The needed module.
        name: String,
        /// Who needs it.
        by: String,
    },
    /// Two modules need each other.
    #[error("modules need each other in a circle: {}", .0.join(" → "))]
    Circle(Vec<String>),
    /// The chain of needs is longer than any real one.
    #[error("the chain of modules that `{0}` needs is longer than {MAX_DEPTH}")]
    TooLong(String),
}

/// Longest chain of needs; the deepest of a distribution's kernel has about ten.
const MAX_DEPTH: usize = 100;

/// The order in which `named` modules and all that they need are loaded; what is needed comes first.
///
/// `named` is as `modulesLoadingOrder` of a Module says: its first is the module itself and each wants the next one
/// before it. Where a hard dependency says otherwise, it wins, as with modprobe. `present` are modules that the kernel
/// has already, as part of itself or loaded: one of them that is needed and found nowhere is no error.
///
/// Source: `__kmod_module_get_probe_list` in `libkmod/libkmod-module.c` of kmod: needs, then what should come before,
/// the module, then what should come after.
pub fn load_order(
    named: &[String],
    candidates: &Candidates,
    present: &dyn Fn(&str) -> bool,
) -> Result<Vec<Step>, Error> {
    let from_image = |name: &&String| candidates.get(*name).is_some_and(|found| found.source == Source::Image);
    if let Some(name) = named.iter().find(|name| !from_image(name)) {
        return Err(Error::NotFound(name.clone()));
    }
    let mut walk = Walk { named, candidates, present, steps: Vec::new(), done: BTreeSet::new(), path: Vec::new() };
    if let Some(first) = named.first() {
        walk.visit(first, Role::Named)?;
    }
    // Those that could not come before their neighbour.
    for name in named.iter().rev() {
        walk.visit(name, Role::Named)?;
    }
    for step in &mut walk.steps {
        if named.contains(&step.name) {
            step.role = Role::Named;
        }
    }
    Ok(walk.steps)
}

struct Walk<'a> {
    named: &'a [String],
    candidates: &'a Candidates,
    present: &'a dyn Fn(&str) -> bool,
    steps: Vec<Step>,
    done: BTreeSet<String>,
    path: Vec<Open>,
}

/// A module that is on its way into the order.
struct Open {
    name: String,
    role: Role,
    /// All that it needs stands before it; only what should come before is being looked for.
    ready: bool,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str, role: Role) -> Result<(), Error> {
        if self.done.contains(name) {
            if role != Role::Optional {
                self.require(name);
            }
            return Ok(());
        }
        if let Some(at) = self.path.iter().position(|open| open.name == name) {
            if self.path[at].ready {
                // What should come before it needs it: the need wins.
                let role = self.path[at].role;
                self.push(name, role);
                return Ok(());
            }
            let circle = self.path[at..].iter().map(|open| open.name.clone()).chain([name.to_owned()]);
            return Err(Error::Circle(circle.collect()));
        }
        if self.path.len() >= MAX_DEPTH {
            return Err(Error::TooLong(self.path[0].name.clone()));
        }
        let Some(candidate) = self.candidates.get(name) else {
            if (self.present)(name) {
                return Ok(());
            }
            let by = self.path.last().map(|open| open.name.clone()).unwrap_or_default();
            return Err(Error::Missing { name: name.to_owned(), by });
        };
        self.path.push(Open { name: name.to_owned(), role, ready: false });
        let inherited = if role == Role::Optional { Role::Optional } else { Role::Needed };
        for need in &candidate.needs {
            self.visit(need, inherited)?;
        }
        if let Some(open) = self.path.last_mut() {
            open.ready = true;
        }
        let named = self.named;
        if let Some(at) = named.iter().position(|known| known == name)
            && let Some(next) = named.get(at + 1)
        {
            self.visit_if_possible(next, Role::Named);
        }
        for soft in &candidate.soft_before {
            self.visit_if_possible(soft, Role::Optional);
        }
        self.path.pop();
        self.push(name, role);
        for soft in &candidate.soft_after {
            self.visit_if_possible(soft, Role::Optional);
        }
        Ok(())
    }

    fn push(&mut self, name: &str, role: Role) {
        if let Some(candidate) = self.candidates.get(name)
            && self.done.insert(name.to_owned())
        {
            self.steps.push(Step { name: name.to_owned(), source: candidate.source, role });
        }
    }

    /// What cannot be had, or would close a circle, is left out with all that came with it.
    fn visit_if_possible(&mut self, name: &str, role: Role) {
        if self.path.iter().any(|open| open.name == name) {
            return;
        }
        let (steps, path) = (self.steps.len(), self.path.len());
        let done = self.done.clone();
        if self.visit(name, role).is_err() {
            self.steps.truncate(steps);
            self.path.truncate(path);
            self.done = done;
        }
    }

    /// What came in as optional and turns out to be needed, needs its own needs too.
    fn require(&mut self, name: &str) {
        let mut open = vec![name.to_owned()];
        while let Some(name) = open.pop() {
            let Some(step) = self.steps.iter_mut().find(|step| step.name == name) else { continue };
            if step.role == Role::Optional {
                step.role = Role::Needed;
                open.extend(self.candidates.get(&name).map(|c| c.needs.clone()).unwrap_or_default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    type Line<'a> = (&'a str, Source, &'a [&'a str], &'a [&'a str], &'a [&'a str]);

    fn candidates(list: &[Line<'_>]) -> Candidates {
        list.iter()
            .map(|(name, source, needs, before, after)| {
                let candidate = Candidate {
                    source: *source,
                    needs: strings(needs),
                    soft_before: strings(before),
                    soft_after: strings(after),
                };
                ((*name).to_owned(), candidate)
            })
            .collect()
    }

    fn order(named: &[&str], candidates: &Candidates, present: &[&str]) -> Result<Vec<(String, Role)>, Error> {
        let steps = load_order(&strings(named), candidates, &|name| present.contains(&name))?;
        Ok(steps.into_iter().map(|step| (step.name, step.role)).collect())
    }

    #[allow(clippy::unnecessary_wraps)] // compared with what may be an error
    fn pairs(list: &[(&str, Role)]) -> Result<Vec<(String, Role)>, Error> {
        Ok(list.iter().map(|(name, role)| ((*name).to_owned(), *role)).collect())
    }

    use Role::{Named, Needed, Optional};
    use Source::{Host, Image};

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let all = candidates(&[
            ("top", Image, &["left", "right"], &[], &[]),
            ("left", Image, &["base"], &[], &[]),
            ("right", Image, &["base", "crc"], &[], &[]),
            ("base", Image, &[], &[], &[]),
            ("crc", Host, &[], &[], &[]),
        ]);
        assert_eq!(
            order(&["top"], &all, &[]),
            pairs(&[("base", Needed), ("left", Needed), ("crc", Needed), ("right", Needed), ("top", Named)])
        );
    }

    #[test]
    fn the_loading_order_is_loaded_from_its_end() {
        let all =
            candidates(&[("a", Image, &["c"], &[], &[]), ("b", Image, &[], &[], &[]), ("c", Image, &[], &[], &[])]);
        assert_eq!(order(&["a", "b", "c"], &all, &[]), pairs(&[("c", Named), ("b", Named), ("a", Named)]));
        assert_eq!(order(&["a", "b"], &all, &[]), pairs(&[("c", Needed), ("b", Named), ("a", Named)]));
        // A hard dependency against the order wins, also in the middle of a chain.
        assert_eq!(order(&["c", "a"], &all, &[]), pairs(&[("c", Named), ("a", Named)]));
        assert_eq!(order(&["b", "c", "a"], &all, &[]), pairs(&[("c", Named), ("a", Named), ("b", Named)]));
        let missing = candidates(&[("a", Image, &[], &[], &[]), ("b", Image, &["gone"], &[], &[])]);
        let gone = Error::Missing { name: "gone".into(), by: "b".into() };
        assert_eq!(order(&["a", "b"], &missing, &[]), Err(gone));
    }

    #[test]
    fn soft_dependencies_come_if_they_can_and_never_stand_in_the_way() {
        let all = candidates(&[
            ("a", Image, &["n"], &["s", "absent", "broken"], &["late"]),
            ("n", Host, &[], &[], &[]),
            ("s", Host, &["t"], &[], &[]),
            ("t", Host, &[], &[], &[]),
            ("broken", Image, &["nowhere"], &[], &[]),
            ("late", Image, &["a"], &["a"], &[]),
        ]);
        assert_eq!(
            order(&["a"], &all, &[]),
            pairs(&[("n", Needed), ("t", Optional), ("s", Optional), ("a", Named), ("late", Optional)])
        );
        let both = candidates(&[
            ("a", Image, &["s"], &["s"], &[]),
            ("s", Image, &["t"], &[], &[]),
            ("t", Image, &[], &[], &[]),
        ]);
        assert_eq!(order(&["a"], &both, &[]), pairs(&[("t", Needed), ("s", Needed), ("a", Named)]));
    }

    #[test]
    fn a_chain_without_end_is_an_error_and_no_overflow() {
        let all: Candidates = (0..100_000)
            .map(|n| {
                let needs = vec![format!("m{}", n + 1)];
                (format!("m{n}"), Candidate { source: Image, needs, soft_before: vec![], soft_after: vec![] })
            })
            .collect();
        assert_eq!(order(&["m0"], &all, &[]), Err(Error::TooLong("m0".into())));
    }

    #[test]
    fn what_cannot_be_ordered_is_told_by_name() {
        let all = candidates(&[
            ("a", Image, &["b"], &[], &[]),
            ("b", Image, &["a"], &[], &[]),
            ("c", Image, &["gone"], &[], &[]),
            ("h", Host, &[], &[], &[]),
        ]);
        let circle = Error::Circle(strings(&["b", "a", "b"]));
        assert_eq!(order(&["b"], &all, &[]), Err(circle));
        assert_eq!(order(&["c"], &all, &[]), Err(Error::Missing { name: "gone".into(), by: "c".into() }));
        assert_eq!(order(&["c"], &all, &["gone"]), pairs(&[("c", Named)]));
        assert_eq!(order(&["x"], &all, &[]), Err(Error::NotFound("x".into())));
        assert_eq!(order(&["h"], &all, &[]), Err(Error::NotFound("h".into())));
    }
}
