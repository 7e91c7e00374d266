use super::*;
use crate::core::image::Digest;

/// Answers after a while, by the image's name, and counts.
#[derive(Default)]
struct Scripted {
    asked: Mutex<Vec<(Duration, String)>>,
    under_way: Mutex<(BTreeMap<String, usize>, usize)>,
    most: Mutex<(BTreeMap<String, usize>, usize)>,
    start: Mutex<Option<Instant>>,
}

impl Scripted {
    fn enter(&self, registry: &str) {
        let mut now = self.under_way.lock().unwrap();
        *now.0.entry(registry.to_owned()).or_default() += 1;
        now.1 += 1;
        let mut most = self.most.lock().unwrap();
        let of_registry = most.0.entry(registry.to_owned()).or_default();
        *of_registry = (*of_registry).max(now.0[registry]);
        most.1 = most.1.max(now.1);
    }

    fn leave(&self, registry: &str) {
        let mut now = self.under_way.lock().unwrap();
        *now.0.get_mut(registry).unwrap() -= 1;
        now.1 -= 1;
    }

    /// Seconds at which this image was asked for.
    fn times(&self, image: &str) -> Vec<f64> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(_, of)| of == image).map(|(at, _)| at.as_secs_f64()).collect()
    }
}

struct Shares(Arc<Scripted>);

impl Oracle for Shares {
    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = Reply> + Send + '_>> {
        Box::pin(async move {
            let script = &self.0;
            let start = *script.start.lock().unwrap().get_or_insert_with(Instant::now);
            script.asked.lock().unwrap().push((start.elapsed(), question.image.clone()));
            let registry = question.image.split('/').next().unwrap().to_owned();
            script.enter(&registry);
            let failed = |reason| Answer::Failed { reason, message: "no".to_owned() };
            let (seconds, answer, rest) = if registry.starts_with("hang") {
                (15, failed(ImageReason::Timeout), None)
            } else if question.image.contains("/missing") {
                (0, failed(ImageReason::NotFound), None)
            } else if question.image.contains("/secret") {
                (0, failed(ImageReason::PullSecretMissing), None)
            } else if question.image.contains("/limited") {
                (0, failed(ImageReason::RateLimited), Some(Duration::from_secs(90)))
            } else {
                (1, Answer::Found(Digest::from_sha256([1; 32])), None)
            };
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            script.leave(&registry);
            Reply { answer, rest }
        })
    }
}

pub(in crate::images) fn question(image: &str) -> Question {
    Question {
        image: image.to_owned(),
        secret: None,
        pull_secrets: vec![],
        insecure: false,
        insecure_skip_tls_verify: false,
    }
}

fn object(name: &str) -> ObjectKey {
    ObjectKey::new("ns", name)
}

struct Bench {
    lookups: Lookups,
    script: Arc<Scripted>,
    wake: Queue<ObjectKey>,
    _stop: tokio_util::sync::DropGuard,
}

fn bench() -> Bench {
    let script = Arc::new(Scripted::default());
    let wake = Queue::new(Duration::ZERO, QueueMetrics::unregistered("objects"));
    let oracle = Box::new(Shares(Arc::clone(&script)));
    let lookups = Lookups::new(oracle, wake.clone(), QueueMetrics::unregistered("questions"));
    let stop = CancellationToken::new();
    tokio::spawn(lookups.clone().run(stop.clone()));
    Bench { lookups, script, wake, _stop: stop.drop_guard() }
}

impl Bench {
    fn want(&self, name: &str, images: &[&str]) {
        self.lookups.want(&object(name), &images.iter().map(|image| question(image)).collect());
    }

    fn reasons(&self, name: &str) -> Vec<(String, Option<ImageReason>)> {
        self.lookups
            .answers(&object(name))
            .into_iter()
            .map(|(question, answer)| match answer {
                Answer::Found(_) => (question.image, None),
                Answer::Failed { reason, .. } => (question.image, Some(reason)),
            })
            .collect()
    }
}

async fn seconds(count: u64) {
    tokio::time::sleep(Duration::from_secs(count)).await;
}

#[tokio::test(start_paused = true)]
async fn everybody_who_waits_gets_one_answer_and_it_is_not_asked_for_again() {
    let bench = bench();
    bench.want("a", &["r/x:1"]);
    bench.want("b", &["r/x:1"]);
    seconds(600).await;
    assert_eq!(bench.script.times("r/x:1").len(), 1);
    for name in ["a", "b"] {
        assert_eq!(bench.reasons(name), [("r/x:1".to_owned(), None)]);
    }
    assert_eq!(bench.wake.len(), 2);
    // Written down: nobody wants it any more, and nothing is kept.
    bench.want("a", &[]);
    bench.want("b", &[]);
    assert!(bench.lookups.lock().asked.is_empty() && bench.lookups.lock().by_object.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pull_secret_that_comes_late_is_found_within_seconds() {
    let bench = bench();
    bench.want("a", &["r/secret:1"]);
    seconds(600).await;
    let times = bench.script.times("r/secret:1");
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    assert!((7.4..=10.1).contains(&longest), "{longest} s");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_asked_again_with_growing_delays_as_long_as_somebody_waits() {
    let bench = bench();
    bench.want("a", &["r/missing:1"]);
    seconds(3600).await;
    let times = bench.script.times("r/missing:1");
    let delays: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (n, delay) in delays.iter().enumerate() {
        let full = (5.0 * 2_f64.powi(i32::try_from(n).unwrap())).min(300.0);
        assert!((full * 0.74..=full + 0.1).contains(delay), "delay {n} is {delay} s");
    }
    assert!((15..=22).contains(&times.len()), "{} tries in an hour", times.len());
    assert_eq!(bench.reasons("a"), [("r/missing:1".to_owned(), Some(ImageReason::NotFound))]);
    // The same answer again wakes nobody.
    assert_eq!(bench.wake.len(), 1);
    bench.want("a", &[]);
    seconds(3600).await;
    assert_eq!(bench.script.times("r/missing:1").len(), times.len());
    assert!(bench.lookups.lock().asked.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_before_the_question_is_nobodys_answer() {
    let bench = bench();
    bench.want("a", &["r/x:1"]);
    seconds(5).await;
    // Dropped and wanted again, as after a changed trigger: asked again at once.
    bench.want("a", &[]);
    bench.want("a", &["r/x:1"]);
    assert_eq!(bench.reasons("a"), []);
    // Somebody who comes while the answer is on its way does not get that one.
    tokio::time::sleep(Duration::from_millis(500)).await;
    bench.want("b", &["r/x:1"]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((bench.reasons("a").len(), bench.reasons("b").len()), (1, 0));
    seconds(2).await;
    assert_eq!(bench.reasons("b").len(), 1);
    assert_eq!(bench.script.times("r/x:1").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_asks_for_rest_gets_it_whoever_asks() {
    let bench = bench();
    bench.want("a", &["r/limited:1"]);
    seconds(10).await;
    bench.want("b", &["r/limited:1"]);
    bench.want("a", &[]);
    bench.want("b", &[]);
    bench.want("b", &["r/limited:1"]);
    seconds(70).await;
    assert_eq!(bench.script.times("r/limited:1").len(), 1);
    seconds(20).await;
    assert_eq!(bench.script.times("r/limited:1").len(), 2);
    assert_eq!(bench.reasons("b"), [("r/limited:1".to_owned(), Some(ImageReason::RateLimited))]);
    bench.want("b", &[]);
    seconds(3600).await;
    assert!(bench.lookups.lock().asked.is_empty());
}

#[tokio::test(start_paused = true)]
async fn silent_registries_do_not_hold_up_the_others() {
    let bench = bench();
    let images: Vec<String> =
        (0..4).flat_map(|registry| (0..WAITING / 3).map(move |n| format!("hang{registry}.io/{n}:1"))).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    bench.want("hanging", &images);
    seconds(40).await;
    // Four silent registries take four of the eight turns at most; the others answer within seconds.
    let healthy: Vec<String> = (0..12).map(|n| format!("good.io/{n}:1")).collect();
    let healthy: Vec<&str> = healthy.iter().map(String::as_str).collect();
    let before = Instant::now();
    bench.want("good", &healthy);
    while bench.reasons("good").len() < 12 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(before.elapsed() <= Duration::from_secs(4), "{:?}", before.elapsed());
    let most = bench.script.most.lock().unwrap().clone();
    assert_eq!(most.1, AT_ONCE);
    assert!(most.0.values().all(|most| *most <= AT_ONCE_PER_REGISTRY), "{most:?}");
}
