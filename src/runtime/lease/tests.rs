//! Two replicas and an API server that is out of order for one of them.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, StatusCode};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::candidate::VALID;
use super::*;
use crate::runtime::readiness::Readiness;

type Answer = (StatusCode, String);
/// Who led from when to when.
type Reigns = Vec<(&'static str, Instant, Instant)>;

/// The server's side: one lease, or none.
#[derive(Default)]
struct Server {
    version: u64,
    lease: Option<Value>,
    releases: usize,
}

impl Server {
    fn status(code: StatusCode) -> Answer {
        let reason = if code == StatusCode::NOT_FOUND { "NotFound" } else { "" };
        let number = code.as_u16();
        (code, json!({"kind": "Status", "message": "no", "reason": reason, "code": number}).to_string())
    }

    fn take(&mut self, method: &Method, body: &[u8]) -> Answer {
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match (&self.lease, method) {
            (None, &Method::POST) => {}
            (Some(_), &Method::POST) => return Self::status(StatusCode::CONFLICT),
            (None, _) => return Self::status(StatusCode::NOT_FOUND),
            (Some(lease), &Method::GET) => return (StatusCode::OK, lease.to_string()),
            (Some(lease), _) => {
                if sent["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"] {
                    return Self::status(StatusCode::CONFLICT);
                }
                self.releases += usize::from(sent["spec"]["holderIdentity"].is_null());
            }
        }
        self.version += 1;
        let metadata = json!({"name": "l", "resourceVersion": self.version.to_string()});
        let lease = self.lease.insert(json!({"metadata": metadata, "spec": sent["spec"]}));
        (StatusCode::OK, lease.to_string())
    }
}

/// What is between a replica and the server.
#[derive(Clone, Copy, Debug)]
enum Link {
    Open,
    /// Nothing arrives.
    Cut,
    /// Everything arrives, no answer comes back.
    Deaf,
    /// The server has a fault of its own.
    Refused,
    /// Everything arrives after this time, also what nobody waits for any more, and is answered then.
    Slow(Duration),
}

/// When somebody led: ends when the work is dropped.
struct Reign {
    who: &'static str,
    begun: Instant,
    log: Arc<Mutex<Reigns>>,
}

impl Drop for Reign {
    fn drop(&mut self) {
        self.log.lock().unwrap().push((self.who, self.begun, Instant::now()));
    }
}

struct Replica {
    link: Arc<Mutex<Link>>,
    shutdown: CancellationToken,
    ready: Readiness,
    task: JoinHandle<Result<(), Lost>>,
}

#[derive(Default)]
struct World {
    server: Arc<Mutex<Server>>,
    reigns: Arc<Mutex<Reigns>>,
}

impl World {
    fn replica(&self, who: &'static str) -> Replica {
        let (link, server) = (Arc::new(Mutex::new(Link::Open)), Arc::clone(&self.server));
        let between = Arc::clone(&link);
        let router = Router::new().fallback(move |method: Method, body: Bytes| {
            let (link, server) = (*between.lock().unwrap(), Arc::clone(&server));
            async move {
                let take = move || server.lock().unwrap().take(&method, &body);
                match link {
                    Link::Open => take(),
                    Link::Cut => std::future::pending().await,
                    Link::Deaf => {
                        take();
                        std::future::pending().await
                    }
                    Link::Refused => Server::status(StatusCode::INTERNAL_SERVER_ERROR),
                    Link::Slow(time) => {
                        let late = async move {
                            sleep(time).await;
                            take()
                        };
                        tokio::spawn(late).await.unwrap()
                    }
                }
            }
        });
        let (client, shutdown, ready) = (Client::new(router, "ns"), CancellationToken::new(), Readiness::default());
        let (gate, stop, log) = (ready.gate("lease"), shutdown.clone(), Arc::clone(&self.reigns));
        let task = tokio::spawn(async move {
            let ended = stop.clone();
            let work = async move {
                let _reign = Reign { who, begun: Instant::now(), log };
                ended.cancelled().await;
                // Passes under way are finished.
                sleep(Duration::from_secs(4)).await;
            };
            lead(client, "ns", "l", who, gate, stop, work).await
        });
        Replica { link, shutdown, ready, task }
    }

    /// Who led from when to when, in order. No two did at one moment.
    fn reigns(&self) -> Reigns {
        let mut reigns = self.reigns.lock().unwrap().clone();
        reigns.sort_by_key(|(_, begun, _)| *begun);
        for pair in reigns.windows(2) {
            assert!(pair[0].2 <= pair[1].1, "two led at one moment: {pair:?}");
        }
        reigns
    }

    fn holder(&self) -> Option<String> {
        let server = self.server.lock().unwrap();
        server.lease.as_ref()?["spec"]["holderIdentity"].as_str().map(ToOwned::to_owned)
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Which fault the leader meets after 20 s, for how long, and whether it has to go.
const FAULTS: [(Link, u64, bool); 12] = [
    (Link::Cut, 5, false),
    (Link::Deaf, 5, false),
    (Link::Refused, 5, false),
    (Link::Slow(seconds(1)), 60, false),
    (Link::Slow(Duration::from_millis(1900)), 60, false),
    (Link::Cut, 12, true),
    (Link::Cut, 60, true),
    (Link::Deaf, 60, true),
    (Link::Refused, 60, true),
    (Link::Slow(seconds(4)), 60, true),
    (Link::Slow(seconds(17)), 60, true),
    (Link::Slow(seconds(40)), 60, true),
];

#[tokio::test(start_paused = true)]
async fn never_do_two_lead_at_one_moment_whatever_is_between_the_leader_and_the_server() {
    for (link, lasts, goes) in FAULTS {
        for offset in 0..3 {
            let world = World::default();
            let first = world.replica("first");
            sleep(seconds(1 + offset)).await;
            let second = world.replica("second");
            sleep(seconds(20)).await;
            assert!(second.ready.missing().is_empty(), "one that waits is ready");
            let fault = Instant::now();
            *first.link.lock().unwrap() = link;
            sleep(seconds(lasts)).await;
            *first.link.lock().unwrap() = Link::Open;
            sleep(seconds(60)).await;
            assert_eq!(world.holder().as_deref(), Some(if goes { "second" } else { "first" }), "{link:?} {lasts}");
            if goes {
                let lost = first.task.await.unwrap();
                assert!(lost.is_err(), "{link:?} {lasts}");
                let ended = world.reigns()[0].2;
                assert!(ended <= fault + STOP, "{link:?} {lasts}: {:?}", ended - fault);
            }
            second.shutdown.cancel();
            first.shutdown.cancel();
            sleep(seconds(30)).await;
            let reigns = world.reigns();
            if goes {
                let [(_, _, ended), (who, begun, _)] = reigns[..] else { panic!("{link:?} {lasts}: {reigns:?}") };
                let gap = begun - ended;
                assert!(who == "second" && gap < VALID + PERIOD * 2, "{link:?} {lasts}: {gap:?}");
            } else {
                assert_eq!(reigns.len(), 1, "{link:?} {lasts}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_that_begin_at_once_do_not_both_lead() {
    let world = World::default();
    let both = [world.replica("first"), world.replica("second")];
    sleep(seconds(60)).await;
    for replica in &both {
        replica.shutdown.cancel();
    }
    sleep(seconds(30)).await;
    assert_eq!(world.reigns().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_asked_to_end_leads_until_its_work_is_done_and_lets_go_once() {
    let world = World::default();
    let first = world.replica("first");
    sleep(seconds(1)).await;
    let second = world.replica("second");
    sleep(seconds(10)).await;
    let asked = Instant::now();
    first.shutdown.cancel();
    assert!(first.task.await.unwrap().is_ok());
    sleep(PERIOD).await;
    assert_eq!(world.holder().as_deref(), Some("second"));
    assert_eq!(world.server.lock().unwrap().releases, 1);
    assert_eq!(world.reigns()[0].2, asked + seconds(4));
    let begun = Instant::now();
    second.shutdown.cancel();
    assert!(second.task.await.unwrap().is_ok() && begun.elapsed() < seconds(5));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_else_changes_is_still_held_and_one_that_is_deleted_is_lost() {
    for deleted in [false, true] {
        let world = World::default();
        let first = world.replica("first");
        sleep(seconds(10)).await;
        {
            let mut server = world.server.lock().unwrap();
            server.version += 1;
            let version = server.version.to_string();
            if deleted {
                server.lease = None;
            } else if let Some(lease) = &mut server.lease {
                lease["metadata"]["resourceVersion"] = version.into();
            }
        }
        sleep(seconds(30)).await;
        assert_eq!(first.task.is_finished(), deleted);
        first.shutdown.cancel();
        assert_eq!(first.task.await.unwrap().is_err(), deleted);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_cannot_read_the_lease_says_so_and_a_process_that_begins_anew_in_its_pod_leads_on() {
    let world = World::default();
    let first = world.replica("first");
    sleep(seconds(5)).await;
    first.task.abort();
    let again = world.replica("first");
    *again.link.lock().unwrap() = Link::Refused;
    sleep(seconds(5)).await;
    assert_eq!(again.ready.missing(), [("lease".to_owned(), "failed to read Lease l: no".to_owned())]);
    *again.link.lock().unwrap() = Link::Open;
    sleep(PERIOD).await;
    again.shutdown.cancel();
    assert!(again.task.await.unwrap().is_ok());
    assert_eq!(world.reigns().len(), 2);
}
