//! Ends a process whose tasks do not run any more, so that it is started again.
//!
//! As a liveness probe does, without a port that somebody else may have and without a process for each question.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tracing::error;

/// Looks without a sign of life before the process is ended: one alone says nothing, since a process that was stopped as a
/// whole (a machine that was paused) looks as soon as it goes on.
const LOOKS: u32 = 8;

/// Signs of life of the task that polls the returned future; call `end` if there was none within about `patience`.
///
/// # Errors
/// No thread can be started.
pub fn watch_over(
    patience: Duration,
    end: impl FnOnce() + Send + 'static,
) -> std::io::Result<impl Future<Output = ()> + Send> {
    let (signs, every) = (Arc::new(AtomicU64::new(0)), patience / LOOKS);
    let seen = Arc::downgrade(&signs);
    thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        let (mut last, mut silent) = (0, 0);
        while silent < LOOKS {
            thread::sleep(every);
            let Some(signs) = seen.upgrade() else { return };
            let now = signs.load(Ordering::Relaxed);
            silent = if now == last { silent + 1 } else { 0 };
            last = now;
        }
        error!(?patience, "no task has run for too long, ending");
        end();
    })?;
    Ok(async move {
        loop {
            signs.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(every / 2).await;
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(400);

    #[tokio::test]
    async fn whoever_shows_no_sign_of_life_is_ended_and_nobody_else() {
        let (ended, end) = mpsc::channel();
        let life = watch_over(PATIENCE, move || ended.send(()).unwrap()).unwrap();
        // Busy, and still alive.
        let _ = tokio::time::timeout(PATIENCE * 3, life).await;
        // Whoever is gone in order is not ended either.
        assert_eq!(end.recv_timeout(PATIENCE * 3), Err(mpsc::RecvTimeoutError::Disconnected));

        let (ended, end) = mpsc::channel();
        let _stuck = watch_over(PATIENCE, move || ended.send(()).unwrap()).unwrap();
        assert_eq!(end.recv_timeout(Duration::from_mins(1)), Ok(()));
    }
}
