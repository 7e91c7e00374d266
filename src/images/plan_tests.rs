use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::core::image::Digest;
use crate::images::lookup::tests::question;
use crate::images::observe::ImagesView;
use crate::oci::route::endpoint::RegistryOptions;

const GENERATION: Option<i64> = Some(4);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn digest(of: u8) -> Digest {
    Digest::from_sha256([of; 32])
}

fn wanted(kernel: &str, image: &str) -> WantedImage {
    WantedImage { kernel: kernel.to_owned(), image: image.to_owned(), options: RegistryOptions::default() }
}

fn failed(reason: ImageReason) -> Answer {
    Answer::Failed { reason, message: format!("said {reason}") }
}

fn world(images: &[(&str, &str)]) -> Observed {
    Observed {
        key: ObjectKey::new("ns", "acx"),
        view: ImagesView {
            uid: "u".to_owned(),
            generation: GENERATION,
            wanted: images.iter().map(|(kernel, image)| wanted(kernel, image)).collect(),
            ..ImagesView::default()
        },
        answers: BTreeMap::new(),
    }
}

/// The world after the plan: the status is written, dropped questions lose their answers, and `oracle` answers.
fn apply(observed: &Observed, plan: &Plan, oracle: impl Fn(&Question) -> Option<Answer>) -> Observed {
    let mut next = observed.clone();
    if let Some(status) = &plan.status {
        next.view.status = status.clone();
    }
    next.answers = plan.questions.iter().filter_map(|question| Some((question.clone(), oracle(question)?))).collect();
    next
}

/// Plans and applies until there is nothing to do; panics if that never comes.
fn settle(mut observed: Observed, oracle: impl Fn(&Question) -> Option<Answer>) -> Observed {
    for second in 100..110 {
        let made = plan(&observed, at(second));
        let next = apply(&observed, &made, &oracle);
        if made.status.is_none() && next == observed {
            return observed;
        }
        observed = next;
    }
    panic!("it never comes to rest: {observed:#?}");
}

/// Kernel, image, status, digest and reason of every image; then the condition.
type Said = (Vec<(String, String, ImageStatus, Option<String>, String)>, (String, String, String));

fn said(observed: &Observed) -> Said {
    let status = &observed.view.status;
    let of_images = status.images_states.iter().map(|state| {
        (
            state.kernel_version.clone().unwrap(),
            state.image.clone(),
            state.status,
            state.digest.clone(),
            state.reason.clone().unwrap_or_default(),
        )
    });
    let summary = status::images_resolved(status).expect("there is a condition");
    assert_eq!(summary.observed_generation, GENERATION);
    assert_eq!(status.observed_generation, GENERATION);
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").expect("there is a summary");
    assert_eq!((&ready.status, &ready.reason, &ready.message), (&summary.status, &summary.reason, &summary.message));
    (of_images.collect(), (summary.status.clone(), summary.reason.clone(), summary.message.clone()))
}

fn state(
    kernel: &str,
    image: &str,
    status: ImageStatus,
    digest: Option<Digest>,
    reason: &str,
) -> (String, String, ImageStatus, Option<String>, String) {
    (kernel.to_owned(), image.to_owned(), status, digest.map(|d| d.to_string()), reason.to_owned())
}

fn condition(status: &str, reason: &str, message: &str) -> (String, String, String) {
    (status.to_owned(), reason.to_owned(), message.to_owned())
}

#[test]
fn an_image_that_is_never_pulled_is_refused_in_one_sentence_and_no_registry_is_asked() {
    let pinned = format!("r/b@{}", digest(1));
    let mut never = world(&[("6.1.0", "local/only:v1"), ("6.2.0", &pinned), ("6.3.0", "R/A b")]);
    never.view.is_never_pulled = true;
    let made = plan(&never, at(1));
    assert_eq!(made.questions, BTreeSet::new());
    let told = made.event.unwrap();
    assert_eq!(told.reason, EventReason::ImageLookupFailed);
    assert!(told.note.contains("image local/only:v1: imagePullPolicy is Never, and images"), "{}", told.note);
    let settled = settle(never.clone(), |question| panic!("{question} is asked for"));
    let reasons: Vec<_> = settled.view.status.images_states.iter().map(|state| state.reason.clone().unwrap()).collect();
    assert_eq!(reasons, ["NeverPulled", "Resolved", "InvalidReference"]);
    let (_, (holds, ..)) = said(&settled);
    assert_eq!(holds, "False");

    // What was found before stays known, and another policy asks again.
    never.view.is_never_pulled = false;
    let found = settle(never, |_| Some(Answer::Found(digest(7))));
    let mut again = found.clone();
    again.view.is_never_pulled = true;
    let again = settle(again, |question| panic!("{question} is asked for"));
    assert_eq!(again.view.status.images_states[0].digest, Some(digest(7).to_string()));
    let mut back = again;
    back.view.is_never_pulled = false;
    let asked = plan(&back, at(1)).questions;
    assert_eq!(asked.into_iter().map(|question| question.image).collect::<Vec<_>>(), ["local/only:v1"]);
}

#[test]
fn one_image_for_several_kernels_is_asked_for_once() {
    let start = world(&[("6.2.0", "r/a:1"), ("6.1.0", "r/a:1"), ("6.1.0", "r/b:1"), ("6.1.0", "r/a:1")]);
    let first = plan(&start, at(1));
    assert_eq!(first.questions, [question("r/a:1"), question("r/b:1")].into());
    assert_eq!((first.status, first.event), (None, None));
    let end = settle(start, |question| Some(Answer::Found(digest(question.image.as_bytes()[2]))));
    assert_eq!(
        said(&end),
        (
            vec![
                state("6.1.0", "r/a:1", ImageStatus::Exists, Some(digest(b'a')), "Resolved"),
                state("6.1.0", "r/b:1", ImageStatus::Exists, Some(digest(b'b')), "Resolved"),
                state("6.2.0", "r/a:1", ImageStatus::Exists, Some(digest(b'a')), "Resolved"),
            ],
            condition("True", "Resolved", "all 3 images are there"),
        )
    );
    assert_eq!(plan(&end, at(999)), Plan::default());
}

#[test]
fn every_failure_is_told_and_asked_again_and_only_404_says_missing() {
    use ImageReason as R;
    let table = [
        (R::NotFound, ImageStatus::DoesNotExist, "False", EventReason::ImageNotFound),
        (R::Unauthorized, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
        (R::Forbidden, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
        (R::RateLimited, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
        (R::RegistryError, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
        (R::InvalidResponse, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
        (R::Timeout, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
        (R::Unreachable, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
        (R::TlsError, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
        (R::PullSecretMissing, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
        (R::PullSecretForbidden, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
        (R::PullSecretInvalid, ImageStatus::Unknown, "Unknown", EventReason::ImageLookupFailed),
    ];
    for (reason, status, holds, event) in table {
        let mut observed = world(&[("6.1.0", "r/a:1")]);
        observed.answers.insert(question("r/a:1"), failed(reason));
        let message = format!("1 of 1 images are not resolved: kernel 6.1.0: image r/a:1: said {reason}");
        let told = plan(&observed, at(1));
        assert_eq!(told.questions, [question("r/a:1")].into(), "{reason} is asked again");
        assert_eq!(told.event, Some(Told { reason: event, note: message.clone() }));
        let end = settle(observed, |_| Some(failed(reason)));
        assert_eq!(
            said(&end),
            (vec![state("6.1.0", "r/a:1", status, None, reason.as_str())], condition(holds, reason.as_str(), &message))
        );
        assert_eq!(plan(&end, at(999)).questions, [question("r/a:1")].into());
    }
}

#[test]
fn names_that_need_no_look_up_cost_no_request() {
    let pinned = format!("r/a@{}", digest(7));
    let tagged = format!("r/a:1@{}", digest(8));
    let observed = world(&[("6.1.0", &pinned), ("6.2.0", &tagged), ("6.3.0", "R/A b")]);
    let made = plan(&observed, at(1));
    assert!(made.questions.is_empty());
    let (images, (holds, reason, _)) = said(&settle(observed, |question| panic!("asked {question}")));
    assert_eq!(
        images,
        [
            state("6.1.0", &pinned, ImageStatus::Exists, Some(digest(7)), "Resolved"),
            state("6.2.0", &tagged, ImageStatus::Exists, Some(digest(8)), "Resolved"),
            state("6.3.0", "R/A b", ImageStatus::Unknown, None, "InvalidReference"),
        ]
    );
    assert_eq!((holds.as_str(), reason.as_str()), ("False", "InvalidReference"));
}

#[test]
fn a_known_digest_outlives_the_image_and_the_registry() {
    let mut known = settle(world(&[("6.1.0", "r/a:1")]), |_| Some(Answer::Found(digest(1))));
    known.view.trigger = Some(1);
    for reason in [ImageReason::NotFound, ImageReason::Timeout] {
        let end = settle(known.clone(), |_| Some(failed(reason)));
        let status = if reason == ImageReason::NotFound { ImageStatus::DoesNotExist } else { ImageStatus::Unknown };
        let (images, (_, _, message)) = said(&end);
        assert_eq!(images, [state("6.1.0", "r/a:1", status, Some(digest(1)), reason.as_str())]);
        assert!(message.ends_with("; the digest known before stays in use"), "{message}");
    }
}

#[test]
fn the_trigger_makes_everything_be_asked_anew_and_loses_nothing_in_between() {
    let found = |of: u8| move |_: &Question| Some(Answer::Found(digest(of)));
    let mut observed = settle(world(&[("6.1.0", "r/a:1"), ("6.2.0", "r/b:1")]), found(1));
    observed.view.trigger = Some(1);
    // An answer from before the change is not taken.
    observed.answers.insert(question("r/a:1"), Answer::Found(digest(1)));
    let marked = plan(&observed, at(200));
    assert!(marked.questions.is_empty());
    assert_eq!(marked.event, None);
    let status = marked.status.clone().expect("the change is written first");
    assert_eq!(status.image_rebuild_trigger_generation, Some(1));
    let next = apply(&observed, &marked, |_| None);
    let (images, (holds, reason, _)) = said(&next);
    assert_eq!(
        images,
        [
            state("6.1.0", "r/a:1", ImageStatus::Unknown, Some(digest(1)), "Pending"),
            state("6.2.0", "r/b:1", ImageStatus::Unknown, Some(digest(1)), "Pending"),
        ]
    );
    assert_eq!((holds.as_str(), reason.as_str()), ("Unknown", "Pending"));
    // A manager that starts here asks for both.
    assert_eq!(plan(&next, at(201)).questions, [question("r/a:1"), question("r/b:1")].into());
    assert_eq!(plan(&next, at(201)).status, None);
    let (images, (holds, _, _)) = said(&settle(next, found(2)));
    assert_eq!(
        images,
        [
            state("6.1.0", "r/a:1", ImageStatus::Exists, Some(digest(2)), "Resolved"),
            state("6.2.0", "r/b:1", ImageStatus::Exists, Some(digest(2)), "Resolved"),
        ]
    );
    assert_eq!(holds, "True");
}

#[test]
fn a_first_trigger_costs_no_second_round() {
    let mut observed = world(&[("6.1.0", "r/a:1")]);
    observed.view.trigger = Some(0);
    let made = plan(&observed, at(1));
    assert_eq!((made.questions.len(), made.status), (1, None));
    let end = settle(observed, |_| Some(Answer::Found(digest(1))));
    assert_eq!(end.view.status.image_rebuild_trigger_generation, Some(0));
}

#[test]
fn a_changed_specification_asks_for_what_is_new_and_forgets_what_is_gone() {
    let mut observed = settle(world(&[("6.1.0", "r/a:1"), ("6.2.0", "r/a:1")]), |_| Some(Answer::Found(digest(1))));
    observed.view.wanted = vec![wanted("6.2.0", "r/a:1"), wanted("6.3.0", "r/c:1")];
    let made = plan(&observed, at(300));
    assert_eq!(made.questions, [question("r/c:1")].into());
    let status = made.status.expect("what is gone is taken out at once");
    assert_eq!(status.images_states.len(), 2);
    let (images, _) = said(&settle(observed, |_| Some(failed(ImageReason::NotFound))));
    assert_eq!(
        images,
        [
            state("6.2.0", "r/a:1", ImageStatus::Exists, Some(digest(1)), "Resolved"),
            state("6.3.0", "r/c:1", ImageStatus::DoesNotExist, None, "NotFound"),
        ]
    );
}

#[test]
fn other_credentials_or_tls_options_are_another_question_only_while_there_is_no_answer() {
    let mut observed = settle(world(&[("6.1.0", "r/a:1")]), |_| Some(Answer::Found(digest(1))));
    observed.view.secret = Some("pull".to_owned());
    observed.view.pull_secrets = vec!["of-account".to_owned()];
    observed.view.wanted[0].options.insecure = true;
    assert_eq!(plan(&observed, at(1)), Plan::default());
    observed.view.status = ModuleImagesConfigStatus::default();
    assert_eq!(
        plan(&observed, at(1)).questions,
        [Question {
            image: "r/a:1".to_owned(),
            secret: Some(ObjectKey::new("ns", "pull")),
            pull_secrets: vec![ObjectKey::new("ns", "of-account")],
            insecure: true,
            insecure_skip_tls_verify: false
        }]
        .into()
    );
}

#[test]
fn a_burst_of_answers_is_not_waited_for_longer_than_there_is_nothing_to_tell() {
    let mut observed = world(&[("6.1.0", "r/a:1"), ("6.2.0", "r/b:1")]);
    observed.answers.insert(question("r/a:1"), Answer::Found(digest(1)));
    let made = plan(&observed, at(1));
    let next = apply(&observed, &made, |q| (q.image == "r/a:1").then(|| Answer::Found(digest(1))));
    let (images, (holds, reason, message)) = said(&next);
    assert_eq!(
        images,
        [
            state("6.1.0", "r/a:1", ImageStatus::Exists, Some(digest(1)), "Resolved"),
            state("6.2.0", "r/b:1", ImageStatus::Unknown, None, "Pending"),
        ]
    );
    assert_eq!(
        (holds.as_str(), reason.as_str(), message.as_str()),
        ("Unknown", "Pending", "1 of 2 images are not resolved: kernel 6.2.0: image r/b:1 is being looked up")
    );
    assert_eq!(made.event, None);
    // One image hangs for ever: nothing is written again.
    let again = plan(&next, at(50));
    assert_eq!((again.status, again.questions), (None, [question("r/b:1")].into()));
}

#[test]
fn what_failed_for_certain_is_named_first_and_many_are_not_all_named() {
    let images: Vec<(String, String)> = (0..5).map(|n| (format!("6.{n}.0"), format!("r/{n}:1"))).collect();
    let images: Vec<(&str, &str)> = images.iter().map(|(k, i)| (k.as_str(), i.as_str())).collect();
    let end = settle(world(&images), |question| match question.image.as_str() {
        "r/3:1" => Some(failed(ImageReason::NotFound)),
        "r/0:1" => None,
        "r/4:1" => Some(Answer::Found(digest(4))),
        _ => Some(failed(ImageReason::Timeout)),
    });
    let (_, summary) = said(&end);
    assert_eq!(
        summary,
        condition(
            "False",
            "NotFound",
            "4 of 5 images are not resolved: kernel 6.3.0: image r/3:1: said NotFound; kernel 6.1.0: image r/1:1: \
             said Timeout; kernel 6.2.0: image r/2:1: said Timeout; …"
        )
    );
}

#[test]
fn times_move_only_with_what_they_speak_of() {
    let mut observed = settle(world(&[("6.1.0", "r/a:1"), ("6.2.0", "r/b:1")]), |question| {
        Some(if question.image == "r/a:1" { Answer::Found(digest(1)) } else { failed(ImageReason::Timeout) })
    });
    let before = observed.view.status.images_states.clone();
    let other = Answer::Failed { reason: ImageReason::Timeout, message: "in other words".to_owned() };
    observed.answers.insert(question("r/b:1"), other);
    let after = plan(&observed, at(900)).status.expect("the message is new").images_states;
    assert_eq!(after[0], before[0]);
    assert_eq!(after[1].last_transition_time, before[1].last_transition_time);
    observed.answers.insert(question("r/b:1"), failed(ImageReason::NotFound));
    let after = plan(&observed, at(900)).status.expect("the reason is new").images_states;
    assert_eq!(after[1].last_transition_time, Some(Time(at(900))));
}

#[test]
fn a_status_of_the_old_operator_is_taken_over_once_the_digests_are_known() {
    let mut observed = world(&[("6.1.0", "r/a:1")]);
    let old = ImageState { image: "r/a:1".to_owned(), status: ImageStatus::Exists, ..ImageState::default() };
    observed.view.status.images_states = vec![old];
    assert_eq!(plan(&observed, at(1)).questions, [question("r/a:1")].into());
    let (images, _) = said(&settle(observed, |_| Some(Answer::Found(digest(1)))));
    assert_eq!(images, [state("6.1.0", "r/a:1", ImageStatus::Exists, Some(digest(1)), "Resolved")]);
}

#[test]
fn nothing_is_asked_for_an_object_that_goes_and_an_empty_one_is_ready() {
    let mut going = world(&[("6.1.0", "r/a:1")]);
    going.view.deleting = true;
    assert_eq!(plan(&going, at(1)), Plan::default());
    let (images, summary) = said(&settle(world(&[]), |_| None));
    assert_eq!((images, summary), (vec![], condition("True", "Resolved", "no image is asked for")));
}

#[test]
fn any_world_comes_to_rest() {
    let images: Vec<(String, String)> =
        (0..30).map(|n| (format!("6.{}.0", n % 7), format!("r/{}:1", n % 11))).collect();
    let images: Vec<(&str, &str)> = images.iter().map(|(k, i)| (k.as_str(), i.as_str())).collect();
    for seed in 0..60_usize {
        let answers = |question: &Question| {
            let n = question.image.bytes().map(usize::from).sum::<usize>() + seed;
            match (n * 7) % 5 {
                0 => None,
                1 | 2 => Some(Answer::Found(digest(1))),
                m => Some(failed(ImageReason::ALL[(n + m) % ImageReason::ALL.len()])),
            }
        };
        let mut end = settle(world(&images), answers);
        end.view.trigger = Some(1);
        end.view.wanted.truncate(20);
        settle(end, answers);
    }
}
