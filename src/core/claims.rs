//! How the kernels of a cluster travel to the Hub: as `ClusterClaims`.
//!
//! A claim value holds at most [`MAX_VALUE`] characters, and by default only 20 claims of a cluster reach the Hub, the
//! first by name.
//! The rules here:
//!
//! - The first claim, [`KERNEL_CLAIM`], is KMM's own: kernels, one on each line, nothing else. A Hub of another edition reads it.
//! - What does not fit goes into parts `kernel-versions.part-002…`. They sort right after the first, so a cut takes
//!   the last parts first, and all names end with [`KERNEL_CLAIM_SUFFIX`], so one reserved suffix lifts the limit of 20.
//! - Each part begins with a line that gives its number, the number of parts, the number of kernels in all, and a hash
//!   of the whole list. White space in that line keeps it from being taken for a kernel.
//! - A first claim that is only the beginning is in falling order; a whole list is in rising order. So the Hub knows
//!   that something is missing even if every other part was cut off, at no cost in characters, and a reader that sorts
//!   for itself notices nothing.
//!
//! Claims cannot be written in one transaction. Written in the order of [`encode`], a reader sees the old list, an
//! incomplete one, or the new list, and never takes a mixture for a whole list: the hash tells.

use crate::api::names::{KERNEL_CLAIM, KERNEL_CLAIM_SUFFIX};

use super::hash;
use super::kernel::{self, KernelVersion};
use std::collections::{BTreeMap, BTreeSet};

/// The longest value in characters, and in bytes as we write it (the ClusterClaim CRD).
pub const MAX_VALUE: usize = 1024;
/// The most parts that [`encode`] makes, enough for some thirty thousand kernels.
pub const MAX_PARTS: usize = 999;

const PART_PREFIX: &str = "kernel-versions.part-";
const HASH_LENGTH: usize = 16;

/// One claim to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Name of the ClusterClaim.
    pub name: String,
    /// Its `spec.value`.
    pub value: String,
}

/// More kernels than [`MAX_PARTS`] claims can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kernels} kernel versions need more than {MAX_PARTS} ClusterClaims")]
pub struct TooMany {
    /// Kernels that were given.
    pub kernels: usize,
}

/// What the claims of a cluster say about its kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelReport {
    /// All kernels of the cluster.
    Complete(BTreeSet<KernelVersion>),
    /// Some of its kernels. Nothing may be taken away from the cluster because a kernel is not among them.
    Incomplete {
        /// The kernels that are known.
        known: BTreeSet<KernelVersion>,
        /// Numbers of the parts that are not there, 1 for the first claim. The last number stands for itself and for
        /// what may follow where the number of parts is unknown. Empty while parts of two different lists are seen,
        /// that is, while the cluster is writing them.
        missing_parts: Vec<usize>,
    },
    /// A claim of ours holds something else than kernels.
    Invalid {
        /// The claim and what is wrong in it.
        why: String,
    },
    /// There is no claim with kernels: no nodes, or no Spoke.
    Absent,
}

impl KernelReport {
    /// The kernels that are known for certain to be in the cluster.
    pub fn known(&self) -> Option<&BTreeSet<KernelVersion>> {
        match self {
            Self::Complete(known) | Self::Incomplete { known, .. } => Some(known),
            Self::Invalid { .. } | Self::Absent => None,
        }
    }
}

/// Whether a ClusterClaim with this name is one of those that [`encode`] makes.
///
/// The Spoke deletes such a claim when the current list does not need it.
pub fn is_kernel_claim(name: &str) -> bool {
    name == KERNEL_CLAIM || part_number(name).is_some()
}

/// The claims for these kernels, in the order in which they must be written: parts, then the first claim.
/// After them, and not before, claims of ours that are not among them are deleted.
///
/// Every kernel is in exactly one claim, as the node reports it. No kernels give no claims: an empty value is not legal.
///
/// # Errors
/// [`TooMany`] where [`MAX_PARTS`] are not enough.
pub fn encode(kernels: &BTreeSet<KernelVersion>) -> Result<Vec<Claim>, TooMany> {
    let sorted: Vec<&str> = kernels.iter().map(KernelVersion::as_str).collect();
    let hash = list_hash(kernels);
    let mut chunks = Vec::new();
    let mut rest = sorted.as_slice();
    while !rest.is_empty() {
        let room = if chunks.is_empty() {
            MAX_VALUE
        } else {
            // The numbers may still grow, so the longest line is reckoned with.
            MAX_VALUE - header(MAX_PARTS, MAX_PARTS, kernels.len(), &hash).len() - 1
        };
        let (chunk, tail) = rest.split_at(fitting(rest, room));
        chunks.push(chunk);
        rest = tail;
    }
    let count = chunks.len();
    if count > MAX_PARTS {
        return Err(TooMany { kernels: kernels.len() });
    }
    let mut claims = Vec::with_capacity(count);
    let mut chunks = chunks.into_iter();
    let Some(first) = chunks.next() else {
        return Ok(claims);
    };
    for (number, chunk) in (2..).zip(chunks) {
        claims.push(Claim {
            name: format!("{PART_PREFIX}{number:03}{KERNEL_CLAIM_SUFFIX}"),
            value: format!("{}\n{}", header(number, count, kernels.len(), &hash), chunk.join("\n")),
        });
    }
    let value = if count == 1 {
        first.join("\n")
    } else {
        let falling: Vec<&str> = first.iter().rev().copied().collect();
        falling.join("\n")
    };
    claims.push(Claim { name: KERNEL_CLAIM.to_owned(), value });
    Ok(claims)
}

/// What a cluster's claims, given as name and value in any order, say about its kernels. Other claims are passed over.
///
/// White space around a kernel, empty lines, carriage returns, doubles and any order of the first claim's lines are
/// accepted. Parts that are left over from a longer list are passed over.
pub fn decode<'a>(claims: impl IntoIterator<Item = (&'a str, &'a str)>) -> KernelReport {
    let mut first: Option<First> = None;
    let mut parts: Vec<Part> = Vec::new();
    for (name, value) in claims {
        let read = if name == KERNEL_CLAIM {
            read_first(value).map(|read| first = Some(read))
        } else if let Some(number) = part_number(name) {
            read_part(number, value).map(|part| parts.push(part))
        } else {
            Ok(())
        };
        if let Err(why) = read {
            return KernelReport::Invalid { why: format!("ClusterClaim {name}: {why}") };
        }
    }
    match first {
        None if parts.is_empty() => KernelReport::Absent,
        Some(first) if !first.continues => KernelReport::Complete(first.kernels),
        first => assemble(first, parts),
    }
}

struct First {
    kernels: BTreeSet<KernelVersion>,
    continues: bool,
}

struct Part {
    number: usize,
    list: ListId,
    kernels: BTreeSet<KernelVersion>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ListId {
    count: usize,
    kernels: usize,
    hash: String,
}

/// Puts a list together of which the first claim is a beginning, or is not there.
fn assemble(first: Option<First>, parts: Vec<Part>) -> KernelReport {
    let mut lists: BTreeMap<ListId, BTreeMap<usize, BTreeSet<KernelVersion>>> = BTreeMap::new();
    let has_first = first.is_some();
    let first = first.map(|first| first.kernels).unwrap_or_default();
    for part in parts {
        lists.entry(part.list).or_default().insert(part.number, part.kernels);
    }
    let mut known = first.clone();
    for kernels in lists.values().flat_map(BTreeMap::values) {
        known.extend(kernels.iter().cloned());
    }
    if has_first {
        for (list, parts) in &lists {
            if !missing(list.count, parts).is_empty() {
                continue;
            }
            let mut whole = first.clone();
            whole.extend(parts.values().flatten().cloned());
            if whole.len() == list.kernels && list_hash(&whole) == list.hash {
                return KernelReport::Complete(whole);
            }
        }
    }
    let mut missing_parts = Vec::new();
    if !has_first {
        missing_parts.push(1);
    }
    match lists.iter().next() {
        None => missing_parts.push(2),
        Some((list, parts)) if lists.len() == 1 => missing_parts.extend(missing(list.count, parts)),
        Some(_) => {}
    }
    KernelReport::Incomplete { known, missing_parts }
}

fn missing(count: usize, parts: &BTreeMap<usize, BTreeSet<KernelVersion>>) -> Vec<usize> {
    (2..=count).filter(|n| !parts.contains_key(n)).collect()
}

/// How many of the lines fit into so many bytes. At least one, which [`kernel::MAX_LENGTH`] guarantees to fit.
fn fitting(lines: &[&str], room: usize) -> usize {
    let mut used = 0;
    lines
        .iter()
        .take_while(|line| {
            used += line.len() + usize::from(used > 0);
            used <= room
        })
        .count()
        .max(1)
}

fn list_hash(kernels: &BTreeSet<KernelVersion>) -> String {
    let lines: Vec<&str> = kernels.iter().map(KernelVersion::as_str).collect();
    let mut hash = hash::hash_bytes(lines.join("\n").as_bytes());
    hash.truncate(HASH_LENGTH);
    hash
}

fn header(number: usize, count: usize, kernels: usize, hash: &str) -> String {
    format!("# part {number} of {count}, {kernels} kernels, list {hash}")
}

fn read_header(line: &str) -> Option<(usize, ListId)> {
    let rest = line.strip_prefix("# part ")?;
    let (number, rest) = rest.split_once(" of ")?;
    let (count, rest) = rest.split_once(", ")?;
    let (kernels, hash) = rest.split_once(" kernels, list ")?;
    let number: usize = number.parse().ok()?;
    let count: usize = count.parse().ok()?;
    let list = ListId { count, kernels: kernels.parse().ok()?, hash: hash.to_owned() };
    ((2..=count).contains(&number) && count <= MAX_PARTS).then_some((number, list))
}

fn part_number(name: &str) -> Option<usize> {
    let digits = name.strip_prefix(PART_PREFIX)?.strip_suffix(KERNEL_CLAIM_SUFFIX)?;
    let number = digits.parse().ok()?;
    (digits.len() == 3 && (2..=MAX_PARTS).contains(&number)).then_some(number)
}

fn read_first(value: &str) -> Result<First, String> {
    let lines = kernels(value.lines())?;
    // Both together: a list of a few kernels that happens to be in falling order is a whole list.
    let no_room = value.len() + 1 + kernel::MAX_LENGTH > MAX_VALUE;
    let falling = lines.is_sorted_by(|a, b| a > b);
    Ok(First { continues: no_room && falling && lines.len() > 1, kernels: lines.into_iter().collect() })
}

fn read_part(number: usize, value: &str) -> Result<Part, String> {
    let mut lines = value.lines();
    let line = lines.next().unwrap_or_default().trim();
    match read_header(line) {
        Some((found, list)) if found == number => {
            Ok(Part { number, list, kernels: kernels(lines)?.into_iter().collect() })
        }
        _ => Err(format!("{line:?} is not the first line of part {number}")),
    }
}

/// The kernels on these lines, in their order; at least one.
fn kernels<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<KernelVersion>, String> {
    let found: Vec<KernelVersion> = lines
        .flat_map(|line| line.split('\r'))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| KernelVersion::parse(line).map_err(|e| e.to_string()))
        .collect::<Result<_, _>>()?;
    if found.is_empty() {
        return Err("holds no kernel version".to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of the kind xorshift64*: the cases are the same in every run.
    struct Cases(u64);

    impl Cases {
        fn next(&mut self, below: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            usize::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33).unwrap() % below
        }

        fn kernel(&mut self) -> KernelVersion {
            let wild = ["+", "-", "_", ".", "ü", "#", ",", "z", "0"];
            let mut text = format!("{}.{}.{}", self.next(7), self.next(30), self.next(400));
            let length = if self.next(10) == 0 { 120 } else { 30 };
            while text.len() < length && self.next(12) > 0 {
                text.push_str(wild[self.next(wild.len())]);
            }
            KernelVersion::parse(&text).unwrap()
        }

        fn kernels(&mut self, count: usize) -> BTreeSet<KernelVersion> {
            (0..count).map(|_| self.kernel()).collect()
        }

        fn shuffle<T>(&mut self, items: &mut [T]) {
            for i in (1..items.len()).rev() {
                items.swap(i, self.next(i + 1));
            }
        }
    }

    fn set(kernels: &[&str]) -> BTreeSet<KernelVersion> {
        kernels.iter().map(|k| KernelVersion::parse(k).unwrap()).collect()
    }

    fn read(claims: &[Claim]) -> KernelReport {
        decode(claims.iter().map(|c| (c.name.as_str(), c.value.as_str())))
    }

    #[test]
    fn few_kernels_are_the_plain_list_of_kmm() {
        let kernels = set(&["6.1.0-43-cloud-amd64", "5.14.0-284.el9.x86_64", "6.12.1+deb12"]);
        assert_eq!(
            encode(&kernels).unwrap(),
            [Claim {
                name: "kernel-versions.kmm.node.kubernetes.io".to_owned(),
                value: "5.14.0-284.el9.x86_64\n6.1.0-43-cloud-amd64\n6.12.1+deb12".to_owned(),
            }]
        );
        assert_eq!(encode(&BTreeSet::new()).unwrap(), []);
    }

    #[test]
    fn every_list_survives_the_way_to_the_hub_and_every_value_is_legal() {
        let mut cases = Cases(42);
        for round in 0..400 {
            let count = 1 + cases.next(if round % 20 == 0 { 900 } else { 90 });
            let kernels = cases.kernels(count);
            let mut claims = encode(&kernels).unwrap();
            assert_eq!(claims.last().unwrap().name, KERNEL_CLAIM);
            for claim in &claims {
                assert!((1..=MAX_VALUE).contains(&claim.value.len()), "{claim:?}");
                assert!(claim.name.ends_with(KERNEL_CLAIM_SUFFIX) && is_kernel_claim(&claim.name));
            }
            assert_eq!(claims, encode(&kernels).unwrap());
            cases.shuffle(&mut claims);
            assert_eq!(read(&claims), KernelReport::Complete(kernels));
        }
    }

    #[test]
    fn a_claim_that_is_cut_off_is_noticed_whichever_it_is() {
        let mut cases = Cases(7);
        for _ in 0..60 {
            let kernels = cases.kernels(120);
            let claims = encode(&kernels).unwrap();
            assert!(claims.len() > 2);
            for lost in 0..claims.len() {
                let mut rest = claims.clone();
                let lost = rest.remove(lost);
                let KernelReport::Incomplete { known, missing_parts } = read(&rest) else {
                    panic!("taken for complete without {lost:?}");
                };
                assert!(known.is_subset(&kernels) && known.len() < kernels.len());
                assert_eq!(missing_parts, [part_number(&lost.name).unwrap_or(1)]);
            }
            let first = claims.last().unwrap().clone();
            let KernelReport::Incomplete { missing_parts, .. } = read(&[first]) else {
                panic!("the beginning of a list is taken for the whole");
            };
            assert_eq!(missing_parts, [2]);
        }
    }

    #[test]
    fn names_sort_so_that_a_cut_takes_the_last_parts_first() {
        let claims = encode(&Cases(3).kernels(2000)).unwrap();
        let mut names: Vec<&str> = claims.iter().map(|c| c.name.as_str()).collect();
        names.sort_unstable();
        assert!(names.len() > 12);
        assert_eq!(names[0], KERNEL_CLAIM);
        let numbers: Vec<usize> = names[1..].iter().map(|n| part_number(n).unwrap()).collect();
        assert_eq!(numbers, (2..=names.len()).collect::<Vec<_>>());
    }

    #[test]
    fn while_a_list_is_rewritten_no_mixture_is_taken_for_a_whole_list() {
        let mut cases = Cases(11);
        for _ in 0..200 {
            let (from, to) = (cases.next(120), cases.next(120));
            let before = cases.kernels(from);
            let mut after: BTreeSet<KernelVersion> = before.iter().filter(|_| cases.next(3) > 0).cloned().collect();
            after.extend(cases.kernels(to));
            let mut cluster: BTreeMap<String, String> = BTreeMap::new();
            let see =
                |cluster: &BTreeMap<String, String>| decode(cluster.iter().map(|(n, v)| (n.as_str(), v.as_str())));
            for claim in encode(&before).unwrap() {
                cluster.insert(claim.name, claim.value);
            }
            let wanted = encode(&after).unwrap();
            for claim in &wanted {
                cluster.insert(claim.name.clone(), claim.value.clone());
                match see(&cluster) {
                    KernelReport::Complete(seen) => assert!(seen == before || seen == after),
                    KernelReport::Incomplete { known, .. } => {
                        assert!(known.iter().all(|k| before.contains(k) || after.contains(k)));
                    }
                    other => panic!("{other:?}"),
                }
            }
            if !after.is_empty() {
                assert_eq!(see(&cluster), KernelReport::Complete(after.clone()));
            }
            let strays: Vec<String> = cluster
                .keys()
                .filter(|n| is_kernel_claim(n) && !wanted.iter().any(|c| c.name == **n))
                .cloned()
                .collect();
            for stray in strays {
                cluster.remove(&stray);
                if !after.is_empty() {
                    assert_eq!(see(&cluster), KernelReport::Complete(after.clone()));
                }
            }
        }
    }

    #[test]
    fn plain_claims_of_other_writers_are_read_with_patience() {
        let complete = |kernels: &[&str]| KernelReport::Complete(set(kernels));
        let table = [
            ("6.1.0", complete(&["6.1.0"])),
            ("6.2.0\n6.1.0", complete(&["6.1.0", "6.2.0"])),
            ("\n6.1.0\r\n\r\n  6.2.0 \n6.1.0\n", complete(&["6.1.0", "6.2.0"])),
            ("6.1.0\n6.1.0+", complete(&["6.1.0", "6.1.0+"])),
        ];
        for (value, expected) in table {
            assert_eq!(decode([("id.k8s.io", "x y"), (KERNEL_CLAIM, value)]), expected, "{value:?}");
        }
        // Full to the last line in rising order, as other writers leave it: nothing says that more follows.
        let full: Vec<String> = (100..150).map(|n| format!("5.14.0-{n}.el9.x86_64")).collect();
        let full = &full[..46].join("\n");
        assert!(full.len() > 950 && full.len() <= MAX_VALUE);
        assert!(matches!(decode([(KERNEL_CLAIM, full.as_str())]), KernelReport::Complete(_)));
    }

    #[test]
    fn what_is_no_list_of_kernels_is_told_with_the_claims_name() {
        let part = "kernel-versions.part-002.kmm.node.kubernetes.io";
        let table = [
            (
                KERNEL_CLAIM,
                "6.1 0",
                "ClusterClaim kernel-versions.kmm.node.kubernetes.io: kernel version \"6.1 0\" holds the character ' ', which no kernel release can have",
            ),
            (KERNEL_CLAIM, " \n", "ClusterClaim kernel-versions.kmm.node.kubernetes.io: holds no kernel version"),
            (
                part,
                "6.1.0",
                "ClusterClaim kernel-versions.part-002.kmm.node.kubernetes.io: \"6.1.0\" is not the first line of part 2",
            ),
            (
                part,
                "# part 3 of 3, 4 kernels, list ab\n6.1.0",
                "ClusterClaim kernel-versions.part-002.kmm.node.kubernetes.io: \"# part 3 of 3, 4 kernels, list ab\" is not the first line of part 2",
            ),
            (
                part,
                "# part 2 of 99999999999999999999, 4 kernels, list ab\n6.1.0",
                "ClusterClaim kernel-versions.part-002.kmm.node.kubernetes.io: \"# part 2 of 99999999999999999999, 4 kernels, list ab\" is not the first line of part 2",
            ),
        ];
        for (name, value, why) in table {
            assert_eq!(decode([(name, value)]), KernelReport::Invalid { why: why.to_owned() });
        }
        assert_eq!(decode([("kernel-versions.kmm", "6.1.0")]), KernelReport::Absent);
        assert_eq!(decode([]), KernelReport::Absent);
    }

    #[test]
    fn more_kernels_than_the_claims_can_hold_are_an_error() {
        let kernels: BTreeSet<KernelVersion> =
            (0..9000).map(|n| KernelVersion::parse(&format!("{n:0>128}")).unwrap()).collect();
        assert_eq!(encode(&kernels), Err(TooMany { kernels: 9000 }));
    }
}
