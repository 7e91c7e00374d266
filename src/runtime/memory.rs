//! Memory of a process that rests.

#![allow(unsafe_code, reason = "the kernel is told which pages it may forget; no safe call does that")]

use std::ffi::c_void;
use std::fs;
use std::io;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Lets go of the pages of the executable's file that were never changed, its code above all; what is needed next is
/// mapped anew, from the page cache or the disk.
///
/// A process that was busy once keeps nearly all of its code mapped, since the kernel maps the neighbours of every page
/// that is touched. At rest it runs a small part of it.
///
/// # Errors
/// `/proc/self` cannot be read, or the kernel refuses. Nothing has changed then.
pub fn let_go_of_code() -> io::Result<()> {
    let executable = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/smaps")?;
    for (start, length) in unchanged(&maps, &executable.to_string_lossy()) {
        let Some(start) = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(start)) else { continue };
        // SAFETY: the range is a whole private mapping of the executable's file that cannot be written and of which no
        // page differs from the file, so the kernel brings back the same bytes when one is touched.
        unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }.map_err(io::Error::from)?;
    }
    Ok(())
}

/// Start and length of the mappings of the executable in `/proc/<pid>/smaps` that cannot be written, and of which no page
/// was changed before (as relocations do): such a page is anonymous or swapped out.
fn unchanged(smaps: &str, executable: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut fields = line.split_ascii_whitespace();
        match (fields.next(), fields.next()) {
            (Some("Anonymous:" | "Swap:"), Some(size)) if size != "0" => candidate = None,
            // The last line of each.
            (Some("VmFlags:"), _) => found.extend(candidate.take()),
            (Some(range), Some("r-xp" | "r--p")) => candidate = of_file(range, line, executable),
            (Some(range), _) if range.contains('-') => candidate = None,
            _ => {}
        }
    }
    found
}

fn of_file(range: &str, line: &str, executable: &str) -> Option<(usize, usize)> {
    let path = &line[line.find('/')?..];
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (path == executable).then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_equals_the_file_of_the_executable_is_let_go_of() {
        let mapping = |head: &str, anonymous: u32, swap: u32| {
            format!("{head}\nRss: 8 kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\nVmFlags: rd ex\n")
        };
        let code = "7f0000001000-7f0000003000 r-xp 00375000 00:02 71                         /kmm";
        let constants = "7f0000000000-7f0000001000 r--p 00000000 00:02 71                         /kmm";
        let smaps = [
            mapping(constants, 0, 0),
            mapping(code, 0, 0),
            mapping("7f0000003000-7f0000004000 r--p 00378000 00:02 71                         /kmm", 4, 0),
            mapping("7f0000004000-7f0000005000 r--p 00379000 00:02 71                         /kmm", 0, 4),
            mapping("7f0000005000-7f0000006000 rw-p 0037a000 00:02 71                         /kmm", 0, 0),
            mapping("7f0000006000-7f0000007000 r-xp 00000000 00:02 72                         /lib/other", 0, 0),
            mapping("7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0                          [vdso]", 0, 0),
            mapping("7ffc00001000-7ffc00002000 rw-p 00000000 00:00 0", 4, 0),
        ]
        .concat();
        assert_eq!(unchanged(&smaps, "/kmm"), [(0x7f00_0000_0000, 0x1000), (0x7f00_0000_1000, 0x2000)]);
        assert_eq!(unchanged(&smaps, "/k"), []);
        assert_eq!(unchanged(&smaps[..code.len()], "/kmm"), [], "cut off");
    }

    #[test]
    fn a_process_that_lets_go_of_its_code_is_smaller_and_goes_on() {
        let shared = || -> u64 {
            let statm = fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(2).unwrap().parse().unwrap()
        };
        let before = shared();
        let_go_of_code().unwrap();
        let after = shared();
        assert!(after < before, "{after} pages after, {before} before");
    }
}
