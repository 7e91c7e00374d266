//! Which taints keep a Module off a node.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// Taints that never keep kernel modules off a node: the node is short of something that a module does not take.
pub const BUILT_IN_TOLERATION_KEYS: [&str; 3] =
    ["node.kubernetes.io/disk-pressure", "node.kubernetes.io/memory-pressure", "node.kubernetes.io/pid-pressure"];

/// The tolerations that every Module has besides its own, in the order in which they are written to nodes' objects.
pub fn built_in_tolerations() -> Vec<Toleration> {
    BUILT_IN_TOLERATION_KEYS
        .iter()
        .map(|key| Toleration {
            key: Some((*key).to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoSchedule".to_owned()),
            ..Toleration::default()
        })
        .collect()
}

/// The Module's tolerations followed by the built-in ones.
pub fn effective_tolerations(of_module: Option<&[Toleration]>) -> Vec<Toleration> {
    let mut all = of_module.unwrap_or_default().to_vec();
    all.extend(built_in_tolerations());
    all
}

/// Whether the toleration covers the taint, by the rule of Kubernetes: an absent or empty key with `Exists` covers all
/// keys, an absent or empty effect all effects, an absent or empty operator means `Equal`.
///
/// An operator that compares numbers (`Lt`, `Gt`) or is unknown covers nothing: the API refuses it for Modules, and a
/// module must not be placed because a toleration was not understood.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            toleration.value.as_deref().unwrap_or_default()
                == taint.value.as_deref().unwrap_or_default()
                // Without a key only `Exists` is legal; `Equal` would otherwise cover every taint without a value.
                && (!key.is_empty() || taint.key.is_empty())
        }
        _ => false,
    }
}

/// The first taint that keeps a Module with these tolerations off the node, if any.
///
/// Only `NoSchedule` and `NoExecute` keep off; `PreferNoSchedule` is advice to the scheduler.
/// Cordon and `NotReady` count through the taints that Kubernetes puts on the node for them.
pub fn first_untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration]) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint {
            key: key.to_owned(),
            value: (!value.is_empty()).then(|| value.to_owned()),
            effect: effect.to_owned(),
            time_added: None,
        }
    }

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        Toleration {
            key: some(key),
            operator: some(operator),
            value: some(value),
            effect: some(effect),
            toleration_seconds: None,
        }
    }

    #[test]
    fn a_toleration_covers_what_kubernetes_says() {
        let given = taint("k", "v", "NoSchedule");
        let table = [
            (toleration("k", "Equal", "v", "NoSchedule"), true),
            (toleration("k", "", "v", "NoSchedule"), true),
            (toleration("k", "", "v", ""), true),
            (toleration("k", "Exists", "", ""), true),
            (toleration("", "Exists", "", ""), true),
            (toleration("", "Exists", "", "NoSchedule"), true),
            (toleration("k", "Equal", "w", "NoSchedule"), false),
            (toleration("k", "Equal", "", "NoSchedule"), false),
            (toleration("j", "Exists", "", ""), false),
            (toleration("k", "Exists", "", "NoExecute"), false),
            (toleration("", "", "v", ""), false),
            (toleration("k", "Gt", "v", ""), false),
        ];
        for (toleration, expected) in table {
            assert_eq!(tolerates(&toleration, &given), expected, "{toleration:?}");
        }
        assert!(!tolerates(&toleration("", "", "", ""), &taint("k", "", "NoSchedule")));
        assert!(tolerates(&toleration("k", "", "", ""), &taint("k", "", "NoSchedule")));
    }

    #[test]
    fn the_first_taint_that_nobody_tolerates_keeps_the_module_off() {
        let soft = taint("soft", "", "PreferNoSchedule");
        let hard = taint("hard", "", "NoSchedule");
        let evict = taint("evict", "x", "NoExecute");
        let keyless = taint("", "", "NoSchedule");
        let hard_ok = toleration("hard", "Exists", "", "");
        let table = [
            (vec![], vec![], None),
            (vec![soft.clone()], vec![], None),
            (vec![soft.clone(), hard.clone()], vec![], Some(&hard)),
            (vec![hard.clone()], vec![hard_ok.clone()], None),
            (vec![hard.clone(), evict.clone()], vec![hard_ok.clone()], Some(&evict)),
            (vec![keyless.clone()], vec![hard_ok.clone()], Some(&keyless)),
        ];
        for (taints, tolerations, expected) in table {
            assert_eq!(first_untolerated(&taints, &tolerations), expected);
        }
    }

    #[test]
    fn pressure_taints_are_tolerated_after_the_modules_own() {
        let own = toleration("own", "Exists", "", "NoExecute");
        let all = effective_tolerations(Some(std::slice::from_ref(&own)));
        assert_eq!(all[0], own);
        assert_eq!(all[1..], built_in_tolerations());
        let pressures: Vec<Taint> = ["disk", "memory", "pid"]
            .iter()
            .map(|p| taint(&format!("node.kubernetes.io/{p}-pressure"), "", "NoSchedule"))
            .collect();
        assert_eq!(first_untolerated(&pressures, &all), None);
        let evicting = [taint("node.kubernetes.io/disk-pressure", "", "NoExecute")];
        assert_eq!(first_untolerated(&evicting, &all), evicting.first());
    }
}
