//! Memory of a process that rests.

#![allow(unsafe_code, reason = "the kernel is told which pages it may forget; no safe call does that")]

use std::ffi::c_void;
use std::fs;
use std::io;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Lets go of the pages of the executable's code; what runs next is mapped anew, from the page cache or the disk.
///
/// A process that was busy once keeps nearly all of its code mapped, since the kernel maps the neighbours of every page
/// that is touched. At rest it runs a small part of it.
///
/// # Errors
/// `/proc/self` cannot be read, or the kernel refuses. Nothing has changed then.
pub fn let_go_of_code() -> io::Result<()> {
    let executable = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    for (start, length) in maps.lines().filter_map(|line| code(line, &executable.to_string_lossy())) {
        let Some(start) = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(start)) else { continue };
        // SAFETY: the range is a whole private mapping of the executable's file that cannot be written, so no page of
        // it differs from the file, and the kernel brings back the same bytes when one is touched.
        unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }.map_err(io::Error::from)?;
    }
    Ok(())
}

/// Start and length of a mapping of the executable's code; `None` for every other line of `/proc/<pid>/maps`.
fn code(line: &str, executable: &str) -> Option<(usize, usize)> {
    let (head, path) = line.split_at_checked(line.find('/')?)?;
    let mut fields = head.split_ascii_whitespace();
    let (range, rights) = (fields.next()?, fields.next()?);
    if rights != "r-xp" || path != executable {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_executable_is_let_go_of() {
        let exe = "/kmm";
        let line = "7f0000001000-7f0000003000 r-xp 00375000 00:02 71                         /kmm";
        assert_eq!(code(line, exe), Some((0x7f00_0000_1000, 0x2000)));
        for other in [
            "7f0000000000-7f0000001000 r--p 00000000 00:02 71                         /kmm",
            "7f0000003000-7f0000004000 rw-p 00378000 00:02 71                         /kmm",
            "7f0000005000-7f0000006000 r-xp 00000000 00:02 72                         /lib/other",
            "7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0                          [vdso]",
            "7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other, exe), None, "{other}");
        }
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
