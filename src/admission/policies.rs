//! What the API server refuses for the manager, as it should stand there.
//!
//! RBAC cannot say any of it: it knows neither the node in a token nor patterns of names.

use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, NamedRuleWithOperations, ValidatingAdmissionPolicyBindingSpec,
    ValidatingAdmissionPolicySpec, Validation,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Resource;

use crate::api::names::{
    CLAIMS_POLICY, KERNEL_CLAIM_PREFIX, KERNEL_CLAIM_SUFFIX, NAMESPACE_CONTAINS_MODULES_LABEL, NAMESPACES_POLICY,
    WORKER_POLICY,
};
use crate::api::ocm::ClusterClaim;
use crate::api::{Module, NodeModulesConfig};
use crate::core::hash;

/// What a policy answers when it is asked whether it is in force.
pub(super) const IN_FORCE: &str = "this policy is in force";

/// The request that asks so. Nobody but the policy refuses it, and nobody means it: each revision of a policy knows the
/// name that it is asked by.
const ASKED: &str = "request.resource.resource == 'nodemodulesconfigs' && request.operation == 'CREATE'";
/// A request by somebody who has the token of a ServiceAccount.
const BY_A_SERVICE_ACCOUNT: &str = "request.userInfo.username.startsWith('system:serviceaccount:')";

/// The policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Policy {
    /// The status of a NodeModulesConfig is written by the worker of that node: the name of the object must be that of the
    /// node in the token (Kubernetes 1.32 or newer puts it there). It holds for every ServiceAccount, so that no name gets
    /// around it; people with certificates or tokens of their own are not concerned.
    Worker,
    /// A namespace that holds Modules is not deleted: that would unload their kernel modules everywhere.
    Namespaces,
    /// Claims decide where a Hub places what: the manager's are those with kernels and no other.
    Claims,
}

impl Policy {
    /// Those that a cluster with nodes needs; `managed` means that there is a Hub.
    pub(super) fn of(managed: bool) -> &'static [Self] {
        if managed { &[Self::Worker, Self::Namespaces, Self::Claims] } else { &[Self::Worker, Self::Namespaces] }
    }

    /// Name of the policy and of its binding.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Worker => WORKER_POLICY,
            Self::Namespaces => NAMESPACES_POLICY,
            Self::Claims => CLAIMS_POLICY,
        }
    }

    /// `manager`: user name of the manager.
    fn rule(self, manager: &str) -> Rule {
        match self {
            Self::Worker => Rule {
                group: NodeModulesConfig::group(&()).into_owned(),
                resource: "nodemodulesconfigs/status".to_owned(),
                operations: &["CREATE", "UPDATE"],
                condition: ("by-a-service-account", BY_A_SERVICE_ACCOUNT.to_owned()),
                allowed: "has(request.userInfo.extra) && \
                          'authentication.kubernetes.io/node-name' in request.userInfo.extra && \
                          request.userInfo.extra['authentication.kubernetes.io/node-name']\
                          .exists(node, node == object.metadata.name)"
                    .to_owned(),
                refusal: "'the worker may only write the status of the NodeModulesConfig of its own node, not of ' + \
                          object.metadata.name"
                    .to_owned(),
            },
            Self::Namespaces => Rule {
                group: String::new(),
                resource: "namespaces".to_owned(),
                operations: &["DELETE"],
                condition: (
                    "holds-modules",
                    format!(
                        "has(oldObject.metadata.labels) && '{NAMESPACE_CONTAINS_MODULES_LABEL}' in oldObject.metadata.labels"
                    ),
                ),
                // Whoever asks again, the namespace controller among them, holds up nothing.
                allowed: "has(oldObject.metadata.deletionTimestamp)".to_owned(),
                refusal: format!(
                    "'namespace ' + oldObject.metadata.name + ' holds Modules, whose kernel modules would be unloaded from \
                     every node: delete the Modules first (kubectl delete {}.{} --all -n ' + oldObject.metadata.name + \
                     '); if it holds none, remove its label {NAMESPACE_CONTAINS_MODULES_LABEL}'",
                    Module::plural(&()),
                    Module::group(&()),
                ),
            },
            Self::Claims => Rule {
                group: ClusterClaim::group(&()).into_owned(),
                resource: ClusterClaim::plural(&()).into_owned(),
                operations: &["CREATE", "UPDATE", "DELETE"],
                condition: (
                    "by-the-manager",
                    format!("{BY_A_SERVICE_ACCOUNT} && request.userInfo.username == {}", literal(manager)),
                ),
                allowed: format!(
                    "(object != null ? object : oldObject).metadata.name.matches('^{}(part-[0-9]{{3}}[.])?{}$')",
                    KERNEL_CLAIM_PREFIX.replace('.', "[.]"),
                    KERNEL_CLAIM_SUFFIX.trim_start_matches('.').replace('.', "[.]"),
                ),
                refusal: "'the manager may only write the ClusterClaims with kernels'".to_owned(),
            },
        }
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What tells the policies apart. `condition`, `allowed` and `refusal` are CEL, the last of them of a text.
struct Rule {
    group: String,
    resource: String,
    operations: &'static [&'static str],
    condition: (&'static str, String),
    allowed: String,
    refusal: String,
}

/// A text as CEL writes it.
fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A policy and its binding, with every default of the API server, so that equal means unchanged.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rendered {
    /// The policy.
    pub(super) policy: ValidatingAdmissionPolicySpec,
    /// Its binding: everywhere, refusing.
    pub(super) binding: ValidatingAdmissionPolicyBindingSpec,
    /// Name of the NodeModulesConfig whose creation this revision of the policy refuses with [`IN_FORCE`].
    pub(super) question: String,
}

impl Rendered {
    /// `manager`: user name of the manager, as the API server knows it.
    ///
    /// # Errors
    /// Never for these values; the hash function is fallible for others.
    pub(super) fn new(policy: Policy, manager: &str) -> Result<Self, hash::Error> {
        let rule = policy.rule(manager);
        let (condition, expression) = rule.condition;
        let resource_rule = |group: String, resource: String, operations: &[&str], name: Option<String>| {
            let list = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
            NamedRuleWithOperations {
                api_groups: Some(vec![group]),
                api_versions: list(&["*"]),
                operations: list(operations),
                resource_names: name.map(|name| vec![name]),
                resources: Some(vec![resource]),
                scope: Some("*".to_owned()),
            }
        };
        let mut matched = vec![resource_rule(rule.group, rule.resource, rule.operations, None)];
        let conditions =
            vec![MatchCondition { name: condition.to_owned(), expression: format!("({ASKED}) || ({expression})") }];
        let validations = vec![
            Validation {
                expression: format!("!({ASKED})"),
                message: Some(IN_FORCE.to_owned()),
                message_expression: None,
                reason: Some("Invalid".to_owned()),
            },
            Validation {
                expression: format!("({ASKED}) || ({})", rule.allowed),
                message: None,
                message_expression: Some(rule.refusal),
                reason: Some("Forbidden".to_owned()),
            },
        ];
        let revision = hash::content_hash(&(&matched, &conditions, &validations))?;
        let question = format!("{}-{}", policy.name(), &revision[..hash::SHORT_LENGTH]);
        matched.push(resource_rule(
            NodeModulesConfig::group(&()).into_owned(),
            NodeModulesConfig::plural(&()).into_owned(),
            &["CREATE"],
            Some(question.clone()),
        ));
        let constraints = MatchResources {
            match_policy: Some("Equivalent".to_owned()),
            namespace_selector: Some(LabelSelector::default()),
            object_selector: Some(LabelSelector::default()),
            resource_rules: Some(matched),
            exclude_resource_rules: None,
        };
        Ok(Self {
            policy: ValidatingAdmissionPolicySpec {
                failure_policy: Some("Fail".to_owned()),
                match_conditions: Some(conditions),
                match_constraints: Some(constraints),
                validations: Some(validations),
                ..ValidatingAdmissionPolicySpec::default()
            },
            binding: ValidatingAdmissionPolicyBindingSpec {
                policy_name: Some(policy.name().to_owned()),
                validation_actions: Some(vec!["Deny".to_owned()]),
                ..ValidatingAdmissionPolicyBindingSpec::default()
            },
            question,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
    use k8s_openapi::api::rbac::v1::ClusterRole;
    use regex::Regex;

    use super::*;
    use crate::core::claims::{encode, is_kernel_claim};
    use crate::core::kernel::KernelVersion;

    const MANAGER: &str = "system:serviceaccount:kmm-operator-system:kmm-operator-controller";

    #[test]
    fn every_revision_is_asked_by_a_name_of_its_own_that_is_the_same_after_a_restart() {
        let question = |policy, manager| Rendered::new(policy, manager).unwrap().question;
        let mut questions = BTreeSet::new();
        for policy in Policy::of(true) {
            assert_eq!(question(*policy, MANAGER), question(*policy, MANAGER));
            assert!(question(*policy, MANAGER).starts_with(policy.name()));
            questions.insert(question(*policy, MANAGER));
        }
        questions.insert(question(Policy::Claims, "somebody else"));
        assert_eq!(questions.len(), 4);
    }

    #[test]
    fn the_role_that_ships_names_exactly_the_policies() {
        let yaml = include_str!("../../config/rbac/manager_role.yaml").split("---").next().unwrap();
        let role: ClusterRole = serde_saphyr::from_str(yaml).unwrap();
        let of_admission = |groups: &Vec<String>| groups == &[ValidatingAdmissionPolicy::group(&())];
        let mut rules = role.rules.into_iter().flatten();
        let rule = rules.find(|rule| rule.api_groups.as_ref().is_some_and(of_admission)).unwrap();
        let named: BTreeSet<String> = rule.resource_names.into_iter().flatten().collect();
        assert_eq!(named, Policy::of(true).iter().map(ToString::to_string).collect());
    }

    #[test]
    fn the_claims_that_are_allowed_are_those_that_the_manager_makes() {
        let rule = Policy::Claims.rule(MANAGER);
        let pattern = Regex::new(rule.allowed.split('\'').nth(1).unwrap()).unwrap();
        let kernels: BTreeSet<_> =
            (0..200).map(|n| KernelVersion::parse(&format!("6.1.{n}-cloud-amd64")).unwrap()).collect();
        let claims = encode(&kernels).unwrap();
        assert!(claims.len() > 2);
        for claim in &claims {
            assert!(is_kernel_claim(&claim.name) && pattern.is_match(&claim.name), "{}", claim.name);
        }
        for other in
            ["id.k8s.io", "kernel-versions.evil.kmm.node.kubernetes.io", "xkernel-versions.kmm.node.kubernetes.io"]
        {
            assert!(!pattern.is_match(other), "{other}");
        }
    }

    #[test]
    fn a_user_name_is_a_text_and_nothing_else() {
        let rendered = Rendered::new(Policy::Claims, "a' || true || \"\\ b").unwrap();
        let condition = &rendered.policy.match_conditions.unwrap()[0].expression;
        assert!(condition.ends_with(r#"request.userInfo.username == "a' || true || \"\\ b")"#), "{condition}");
    }
}
