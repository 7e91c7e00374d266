//! What a namespace with Modules needs: a mark against deletion, and the right of workers to read its pull secrets.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleRef, Subject};
use kube::Resource;

use crate::api::names::PULL_SECRETS_ROLE;
use crate::runtime::store::ObjectKey;

use super::observe::Observed;

/// What is to be written, in this order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// The namespace is marked (`true`) or its mark is removed.
    Mark(bool),
    /// The Role is written with these rights.
    ApplyRole(Vec<PolicyRule>),
    /// The binding is written.
    ApplyBinding {
        /// Which role.
        role: RoleRef,
        /// Who has it.
        subject: Subject,
    },
    /// The binding is removed; one to another role cannot be changed and is written again afterwards.
    DeleteBinding {
        /// `metadata.uid`.
        uid: String,
    },
    /// The Role is removed.
    DeleteRole {
        /// `metadata.uid`.
        uid: String,
    },
}

/// The plan for one namespace.
pub(super) fn plan(observed: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    let marked = !observed.modules.is_empty();
    if marked != observed.marked {
        actions.push(Action::Mark(marked));
    }
    // Whose secrets nobody knows, takes none away.
    let unclear = observed.modules.iter().any(|module| !module.spec_known);
    let before = observed.role.iter().filter(|_| unclear).flat_map(|role| &role.rules);
    let secrets: BTreeSet<&str> = observed
        .modules
        .iter()
        .filter(|module| module.spec.module_loader.is_some())
        .filter_map(|module| module.spec.image_repo_secret.as_ref())
        .map(|secret| secret.name.as_str())
        .chain(observed.pull_secrets.iter().map(String::as_str))
        .chain(before.filter_map(|rule| rule.resource_names.as_ref()).flatten().map(String::as_str))
        .filter(|name| !name.is_empty())
        .collect();
    let (role, subject) = (role_ref(), subject(&observed.worker));
    if secrets.is_empty() {
        actions.extend(observed.binding.iter().map(|binding| Action::DeleteBinding { uid: binding.uid.clone() }));
        actions.extend(observed.role.iter().map(|role| Action::DeleteRole { uid: role.uid.clone() }));
        return actions;
    }
    let rules = vec![PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec!["secrets".to_owned()]),
        resource_names: Some(secrets.into_iter().map(str::to_owned).collect()),
        verbs: vec!["get".to_owned()],
        ..PolicyRule::default()
    }];
    if observed.role.as_ref().is_none_or(|role| role.rules != rules) {
        actions.push(Action::ApplyRole(rules));
    }
    match &observed.binding {
        Some(binding) if binding.role != role => {
            actions.push(Action::DeleteBinding { uid: binding.uid.clone() });
            actions.push(Action::ApplyBinding { role, subject });
        }
        Some(binding) if binding.subjects == [subject.clone()] => {}
        Some(_) | None => actions.push(Action::ApplyBinding { role, subject }),
    }
    actions
}

fn role_ref() -> RoleRef {
    RoleRef {
        api_group: Role::group(&()).into_owned(),
        kind: Role::kind(&()).into_owned(),
        name: PULL_SECRETS_ROLE.to_owned(),
    }
}

fn subject(worker: &ObjectKey) -> Subject {
    Subject {
        api_group: None,
        kind: "ServiceAccount".to_owned(),
        name: worker.name.clone(),
        namespace: Some(worker.namespace.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runtime::store::Projection;
    use crate::spoke::testing::a_module;
    use crate::spoke::view::{ModuleView, RoleBindingView, RoleView};
    use k8s_openapi::api::core::v1::LocalObjectReference;

    fn observed(secrets: &[&str]) -> Observed {
        let with = |name: &&str| {
            let mut module = a_module("drivers", &format!("of-{name}"), "u");
            module.spec.image_repo_secret = Some(LocalObjectReference { name: (*name).to_owned() });
            module.build()
        };
        Observed {
            modules: secrets.iter().map(with).collect(),
            marked: true,
            worker: ObjectKey::new("kmm", "worker"),
            ..Observed::default()
        }
    }

    /// The world after the actions.
    fn applied(mut world: Observed) -> Observed {
        for action in plan(&world) {
            match action {
                Action::Mark(marked) => world.marked = marked,
                Action::ApplyRole(rules) => world.role = Some(Arc::new(RoleView { uid: "r".into(), rules })),
                Action::ApplyBinding { role, subject } => {
                    let binding = RoleBindingView { uid: "b".into(), role, subjects: vec![subject] };
                    world.binding = Some(Arc::new(binding));
                }
                Action::DeleteBinding { .. } => world.binding = None,
                Action::DeleteRole { .. } => world.role = None,
            }
        }
        world
    }

    #[test]
    fn workers_may_read_exactly_the_named_secrets_and_the_next_plan_is_empty() {
        let of_accounts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        for (of_modules, of_accounts, names) in [
            (vec!["b", "a", "b"], of_accounts(&[]), vec!["a", "b"]),
            (vec!["b"], of_accounts(&["c", "b"]), vec!["b", "c"]),
            (vec![""], of_accounts(&["c"]), vec!["c"]),
        ] {
            let world = applied(Observed { pull_secrets: of_accounts, ..observed(&of_modules) });
            let rules = &world.role.as_ref().unwrap().rules;
            assert_eq!(rules[0].resource_names, Some(names.into_iter().map(str::to_owned).collect()));
            assert_eq!((rules.len(), rules[0].verbs.as_slice()), (1, ["get".to_owned()].as_slice()));
            assert!(plan(&world).is_empty());
        }
    }

    #[test]
    fn with_the_last_module_the_mark_and_the_right_go() {
        let mut world = applied(observed(&["a"]));
        world.modules.clear();
        let world = applied(world);
        assert!(!world.marked && world.role.is_none() && world.binding.is_none());
        assert!(plan(&world).is_empty());
    }

    #[test]
    fn a_module_that_nobody_can_read_takes_no_right_away() {
        let mut world = applied(observed(&["a", "b"]));
        let meta = a_module("drivers", "of-a", "u").meta;
        world.modules[0] = ModuleView::unreadable(&meta, "bad", None).unwrap().facts;
        assert!(plan(&world).is_empty());
        world.modules.remove(0);
        assert!(!plan(&world).is_empty());
    }

    #[test]
    fn a_binding_to_another_role_or_account_is_put_right() {
        for edit in [
            (|b: &mut RoleBindingView| b.role.name = "other".into()) as fn(&mut RoleBindingView),
            |b| b.subjects[0].name = "other".into(),
            |b| b.subjects.push(Subject::default()),
        ] {
            let right = applied(observed(&["a"]));
            let mut binding = (**right.binding.as_ref().unwrap()).clone();
            edit(&mut binding);
            let world = applied(Observed { binding: Some(Arc::new(binding)), ..right.clone() });
            assert_eq!(world.binding, right.binding);
        }
    }

    #[test]
    fn a_namespace_without_anything_is_left_alone() {
        assert!(plan(&Observed::default()).is_empty());
    }
}
