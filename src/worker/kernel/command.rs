//! Runs a program: absolute path, argument vector, no shell, no environment but what is given, a limit for its time and
//! its words.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tracing::debug;

/// Most bytes of an answer that are kept.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// Last lines of what was written, and their length, that go into a message.
const TAIL: usize = 4;
const MAX_LINE: usize = 300;
/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long a killed program may take to go; one that the kernel holds may never.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// It left with 0.
    pub success: bool,
    /// How it left, in words.
    pub how: String,
    /// What it wrote to its standard output.
    pub answer: String,
    /// Its last lines on standard error.
    pub tail: Vec<String>,
}

/// What a program is given besides its arguments.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Its environment; of two variables of one name the later counts.
    pub environment: Vec<(OsString, OsString)>,
    /// What it can read from its standard input: less than a pipe holds.
    pub input: Vec<u8>,
}

/// A program that did not come to an end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("failed to start {program}")]
    Start {
        /// Its path.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It was killed because it took too long.
    #[error("{program} did not end within {} s and was killed{}", limit.as_secs(), if *gone { "" } else { "; the kernel still holds it" })]
    TooLong {
        /// Its path.
        program: String,
        /// The limit.
        limit: Duration,
        /// It has gone since.
        gone: bool,
    },
    /// It left, and something that it had begun keeps its answer open.
    #[error("{program} left, and a process that it began keeps its answer open")]
    Open {
        /// Its path.
        program: String,
    },
    /// It wrote more than is read.
    #[error("{program} wrote more than {MAX_ANSWER} bytes")]
    TooMuch {
        /// Its path.
        program: String,
    },
}

/// Runs `program` under the name `name` (kmod is one executable that does what it is called) and waits for its end.
///
/// It is in a process group of its own: a signal to the worker does not reach it, and at the limit all of it is killed.
pub fn run(program: &Path, name: &str, arguments: &[String], limit: Duration) -> Result<Finished, Error> {
    run_with(program, name, arguments, &Given::default(), limit)
}

/// As [`run`], with an environment and an input.
pub fn run_with(
    program: &Path,
    name: &str,
    arguments: &[String],
    given: &Given,
    limit: Duration,
) -> Result<Finished, Error> {
    debug!(program = %program.display(), name, ?arguments, "running");
    let shown = || match program.display().to_string() {
        path if path == name => path,
        path => format!("{name} ({path})"),
    };
    let failed = |source| Error::Start { program: shown(), source };
    if !program.is_absolute() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "the path is not absolute")));
    }
    let mut child = Command::new(program)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(given.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(if given.input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // A program that does not want to know has closed it.
    let _ = child.stdin.take().map(|mut pipe| pipe.write_all(&given.input));
    let answer = read(child.stdout.take(), whole);
    let tail = read(child.stderr.take(), last_lines);
    let ended = wait(&mut child, limit);
    if ended.is_none() {
        let group = i32::try_from(child.id()).map(Pid::from_raw);
        // Gone already between the last look and now: nothing to kill.
        let _ = group.map(|group| killpg(group, Signal::SIGKILL));
        let gone = wait(&mut child, LAST_WAIT).is_some();
        return Err(Error::TooLong { program: shown(), limit, gone });
    }
    // A child that it left behind may hold the pipes open.
    let answer = answer.recv_timeout(LAST_WAIT).map_err(|_| Error::Open { program: shown() })?;
    let answer = answer.ok_or_else(|| Error::TooMuch { program: shown() })?;
    let tail = tail.recv_timeout(LAST_WAIT).unwrap_or_default();
    let status = ended.unwrap_or_default();
    Ok(Finished { success: status.success(), how: status.to_string(), answer, tail })
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if begun.elapsed() < limit => std::thread::sleep(LOOK),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn read<T: Send + 'static>(pipe: Option<impl Read + Send + 'static>, how: fn(Box<dyn Read>) -> T) -> Receiver<T> {
    let (send, receive) = mpsc::channel();
    if let Some(pipe) = pipe {
        // Nobody listens any more if the program was killed.
        std::thread::spawn(move || drop(send.send(how(Box::new(pipe)))));
    }
    receive
}

/// All of it; `None` if it is too much. It is read to its end in any case: a full pipe would stop the program.
fn whole(mut pipe: Box<dyn Read>) -> Option<String> {
    let mut answer = Vec::new();
    let limit = u64::try_from(MAX_ANSWER).unwrap_or(u64::MAX) + 1;
    let _ = pipe.by_ref().take(limit).read_to_end(&mut answer);
    let _ = io::copy(&mut pipe, &mut io::sink());
    (answer.len() <= MAX_ANSWER).then(|| String::from_utf8_lossy(&answer).into_owned())
}

/// The last lines.
fn last_lines(mut pipe: Box<dyn Read>) -> Vec<String> {
    let mut kept: VecDeque<u8> = VecDeque::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut piece) {
        kept.extend(&piece[..length]);
        let surplus = kept.len().saturating_sub(4 * TAIL * MAX_LINE);
        kept.drain(..surplus);
    }
    let text = String::from_utf8_lossy(kept.make_contiguous()).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let surplus = lines.len().saturating_sub(TAIL);
    lines[surplus..].iter().map(|line| line.chars().take(MAX_LINE).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: &str = "/bin/sh";

    fn shell(script: &str, limit: Duration) -> Result<Finished, Error> {
        run(Path::new(SHELL), "sh", &["-c".to_owned(), script.to_owned()], limit)
    }

    #[test]
    fn answer_end_and_last_words_are_told() {
        let long = Duration::from_secs(30);
        let done = shell("echo one; echo two; for n in 1 2 3 4 5 6; do echo $n >&2; done; exit 3", long).unwrap();
        assert_eq!(
            done,
            Finished {
                success: false,
                how: "exit status: 3".into(),
                answer: "one\ntwo\n".into(),
                tail: ["3", "4", "5", "6"].map(ToOwned::to_owned).to_vec(),
            }
        );
        // Arguments are words, whatever they hold; there is no environment.
        let words = ["-c", "printf '%s|' \"$@\" \"$HOME\"", "x", "a b", "$(id)", "'"].map(ToOwned::to_owned);
        assert_eq!(run(Path::new(SHELL), "sh", &words, long).unwrap().answer, "a b|$(id)|'||");
        let environment = [("A", "1"), ("B", "2"), ("A", "3")].map(|(name, value)| (name.into(), value.into())).into();
        let given = Given { environment, input: b"words".to_vec() };
        let words = ["-c", "cat; printf '|%s' \"$A\" \"$B\" \"$HOME\""].map(ToOwned::to_owned);
        assert_eq!(run_with(Path::new(SHELL), SHELL, &words, &given, long).unwrap().answer, "words|3|2|");
        assert!(run_with(Path::new(SHELL), SHELL, &words[1..1], &given, long).is_ok_and(|done| !done.success));
        assert!(matches!(run(Path::new("/no/such/program"), "x", &[], long), Err(Error::Start { .. })));
        assert!(matches!(run(Path::new("sh"), "sh", &[], long), Err(Error::Start { .. })));
        assert!(matches!(shell("head -c 5000000 /dev/zero", long), Err(Error::TooMuch { .. })));
        assert!(matches!(shell("sleep 4 & echo done", long), Err(Error::Open { .. })));
    }

    #[test]
    fn what_takes_too_long_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let script = format!("(sleep 2; touch {}) & sleep 60", mark.display());
        let begun = Instant::now();
        let error = shell(&script, Duration::from_millis(100)).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(error.to_string(), "sh (/bin/sh) did not end within 0 s and was killed");
        std::thread::sleep(Duration::from_secs(3));
        assert!(!mark.exists(), "a child went on");
    }
}
