//! Which taints keep a Module off a node.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::label;

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

/// A text that names no taints to tolerate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no taints: write `key`, `key:Effect`, `key=value` or `key=value:Effect`, as `kubectl taint` does, with NoSchedule, PreferNoSchedule or NoExecute"
)]
pub struct InvalidToleration(String);

/// The toleration of the taints that a text names, which is written as `kubectl taint` writes a taint: `key=value:Effect`.
/// Without a value all values are meant, without an effect all effects.
///
/// # Errors
/// The key, the value or the effect is none.
pub fn parse_toleration(text: &str) -> Result<Toleration, InvalidToleration> {
    let (taint, effect) = text.split_once(':').map_or((text, None), |(taint, effect)| (taint, Some(effect)));
    let (key, value) = taint.split_once('=').map_or((taint, None), |(key, value)| (key, Some(value)));
    let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    if !label::is_key(key) || !value.is_none_or(label::is_value) || !effect.is_none_or(|it| effects.contains(&it)) {
        return Err(InvalidToleration(text.to_owned()));
    }
    Ok(Toleration {
        key: Some(key.to_owned()),
        operator: Some(if value.is_some() { "Equal" } else { "Exists" }.to_owned()),
        value: value.map(str::to_owned),
        effect: effect.map(str::to_owned),
        toleration_seconds: None,
    })
}

/// The taint as `kubectl taint` writes it: `key=value:Effect`.
pub fn written(taint: &Taint) -> String {
    match taint.value.as_deref().unwrap_or_default() {
        "" => format!("{}:{}", taint.key, taint.effect),
        value => format!("{}={value}:{}", taint.key, taint.effect),
    }
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
    fn a_taint_as_kubectl_writes_it_is_tolerated_by_what_it_is_read_as_and_nothing_else_is_read() {
        for given in [taint("k", "v", "NoSchedule"), taint("example.org/k", "", "NoExecute")] {
            let read = parse_toleration(&written(&given)).unwrap();
            assert!(tolerates(&read, &given));
            assert!(!tolerates(&read, &taint(&given.key, "other", "PreferNoSchedule")));
            assert!(tolerates(&parse_toleration(&given.key).unwrap(), &given));
        }
        assert!(!tolerates(&parse_toleration("k=v").unwrap(), &taint("k", "w", "NoSchedule")));
        for text in ["", ":NoSchedule", "=v", "k:Never", "k=a b", "-k", "a/b/c", "k:", "k=v:NoSchedule:NoExecute"] {
            assert_eq!(parse_toleration(text), Err(InvalidToleration(text.to_owned())));
        }
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
