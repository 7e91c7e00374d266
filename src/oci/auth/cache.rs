//! What credential provider plugins answered, for as long as they said.

use std::collections::BTreeMap;
use std::time::Instant;

use super::credentials::Credentials;
use super::provider::{Answer, Provider, Scope};

/// Answers by plugin, and by the registry or repository for which they hold; the empty name stands for all. A plugin that
/// is run otherwise than before is another one.
#[derive(Debug, Default)]
pub struct Cache(BTreeMap<(Provider, String), Kept>);

#[derive(Debug)]
struct Kept {
    until: Instant,
    credentials: Credentials,
}

impl Cache {
    /// What a plugin answered that still holds for an image, named by `registry/repository`.
    pub fn get(&self, provider: &Provider, name: &str, now: Instant) -> Option<&Credentials> {
        [name, registry(name), ""].into_iter().find_map(|key| {
            let kept = self.0.get(&(provider.clone(), key.to_owned()))?;
            (now < kept.until).then_some(&kept.credentials)
        })
    }

    /// Keeps an answer of now, and nothing that holds no more.
    pub fn keep(&mut self, provider: Provider, name: &str, answer: Answer, now: Instant) {
        self.0.retain(|_, kept| now < kept.until);
        let key = match answer.scope {
            Scope::Image => name,
            Scope::Registry => registry(name),
            Scope::Global => "",
        };
        // What lasts longer than the clock can tell is not worth keeping.
        if let Some(until) = now.checked_add(answer.lasts).filter(|until| now < *until) {
            self.0.insert((provider, key.to_owned()), Kept { until, credentials: answer.credentials });
        }
    }
}

/// The registry of `registry/repository`.
fn registry(name: &str) -> &str {
    name.split_once('/').map_or(name, |(registry, _)| registry)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::oci::auth::provider::parse_config;

    fn provider(argument: &str) -> Provider {
        let config = format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: p\n  \
             matchImages: [quay.io]\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: [{argument}]\n"
        );
        parse_config(&config).unwrap().remove(0)
    }

    #[test]
    fn an_answer_serves_its_scope_until_it_ends_and_no_other_plugin() {
        let (begin, minute) = (Instant::now(), Duration::from_mins(1));
        let images = ["quay.io/a", "quay.io/b", "docker.io/a"];
        for (scope, served) in [(Scope::Image, 1), (Scope::Registry, 2), (Scope::Global, 3)] {
            let mut cache = Cache::default();
            cache.keep(
                provider("one"),
                "quay.io/a",
                Answer { scope, lasts: minute, credentials: Credentials::default() },
                begin,
            );
            let found = |provider: &Provider, now| images.map(|name| cache.get(provider, name, now).is_some());
            let expected = [0, 1, 2].map(|place| place < served);
            assert_eq!(found(&provider("one"), begin), expected, "{scope:?}");
            assert_eq!(found(&provider("one"), begin + Duration::from_secs(59)), expected, "{scope:?}");
            assert_eq!(found(&provider("one"), begin + minute), [false; 3], "{scope:?}");
            assert_eq!(found(&provider("other"), begin), [false; 3], "{scope:?}");
        }
    }

    #[test]
    fn what_holds_once_only_or_no_more_is_not_kept() {
        let begin = Instant::now();
        let mut cache = Cache::default();
        let answer = |lasts| Answer { scope: Scope::Image, lasts, credentials: Credentials::default() };
        for lasts in [Duration::ZERO, Duration::MAX] {
            cache.keep(provider("one"), "quay.io/a", answer(lasts), begin);
            assert!(cache.0.is_empty(), "{lasts:?}");
        }
        cache.keep(provider("one"), "quay.io/a", answer(Duration::from_secs(1)), begin);
        cache.keep(provider("one"), "quay.io/b", answer(Duration::from_secs(1)), begin + Duration::from_secs(1));
        assert_eq!(cache.0.keys().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["quay.io/b"]);
    }
}
