//! The long-lived tasks of a process: if one ends, all end.

use std::error::Error as StdError;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::client::chain;

type Boxed = Box<dyn StdError + Send + Sync>;

/// A set of tasks under one shutdown token.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<(&'static str, Result<(), Boxed>)>,
    shutdown: CancellationToken,
    grace: Duration,
}

/// A task ended by itself, which none of them should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It returned an error.
    #[error("{task} failed")]
    Failed {
        /// Name of the task.
        task: &'static str,
        /// Its error.
        #[source]
        source: Boxed,
    },
    /// It returned without an error and without having been asked.
    #[error("{task} ended unexpectedly")]
    Ended {
        /// Name of the task.
        task: &'static str,
    },
    /// It panicked.
    #[error("a task panicked")]
    Panicked,
    /// Signals cannot be waited for.
    #[error("failed to listen for signals")]
    Signals(#[source] std::io::Error),
}

/// Listens from now on for SIGTERM and SIGINT; the future ends with the name of the first.
///
/// # Errors
/// Signals cannot be waited for.
pub fn asked_to_end() -> Result<impl Future<Output = &'static str> + Send, Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

impl Tasks {
    /// An empty set that cancels `shutdown` as soon as one task ends or a signal arrives, and then gives the others
    /// `grace` to end; the pod's `terminationGracePeriodSeconds` is longer.
    pub fn new(shutdown: CancellationToken, grace: Duration) -> Self {
        Self { set: JoinSet::new(), shutdown, grace }
    }

    /// Starts a task that runs until shutdown.
    pub fn spawn<E>(&mut self, task: &'static str, work: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: StdError + Send + Sync + 'static,
    {
        self.set.spawn(async move { (task, work.await.map_err(|error| Box::new(error) as Boxed)) });
    }

    /// Starts a task that cannot fail and is dropped at shutdown, for instance a watch.
    pub fn spawn_endless(&mut self, task: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.set.spawn(async move {
            tokio::select! {
                () = work => {}
                () = shutdown.cancelled() => {}
            }
            (task, Ok(()))
        });
    }

    /// Waits for SIGTERM, SIGINT or the first task that ends; then ends all.
    ///
    /// # Errors
    /// The first task that ended before it was asked to.
    pub async fn run(mut self) -> Result<(), Error> {
        let asked = asked_to_end()?;
        let mut first = Ok(());
        tokio::select! {
            signal = asked => info!("{signal}, ending"),
            Some(ended) = self.set.join_next() => {
                first = match ended {
                    Ok((task, Err(source))) => Err(Error::Failed { task, source }),
                    Ok((_, Ok(()))) if self.shutdown.is_cancelled() => Ok(()),
                    Ok((task, Ok(()))) => Err(Error::Ended { task }),
                    Err(_) => Err(Error::Panicked),
                };
                if let Err(error) = &first {
                    error!(error = %chain(error), "ending");
                }
            }
        }
        self.shutdown.cancel();
        let rest = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(self.grace, rest).await.is_err() {
            error!("some tasks did not end in time and are dropped");
        }
        first
    }
}
