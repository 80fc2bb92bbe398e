//! Which local ports the guest's kernel gives to outgoing connections.
//!
//! A server that closes a connection first keeps its end for a minute (TIME_WAIT). gVisor makes new
//! secrets for sequence numbers at a restore, so half of all new connections that meet such an end of
//! before, by being given the same local port, are taken for old duplicates: their client gets no
//! answer until the minute is over. So each start gives out other ports than the ones before it.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// What gVisor starts with.
const FIRST: u16 = 16000;
const LAST: u16 = 65535;
/// Parts of the range, used in turn. More of them would leave a guest too few ports at a time, fewer
/// would come back too soon to ends that a quick row of pauses has kept alive.
const PARTS: u16 = 8;
/// 6,192 ports.
const SIZE: u16 = (LAST - FIRST + 1) / PARTS;

/// Parts given out so far; it lives in the guest's memory, as the ends of connections do.
static TURN: AtomicU16 = AtomicU16::new(0);

/// Moves on to the next part, unless somebody inside has chosen a range.
pub(super) fn move_on() -> io::Result<()> {
    let now = fs::read_to_string(RANGE)?;
    if !is_ours(&now) {
        return Ok(());
    }
    let (first, last) = part(TURN.fetch_add(1, Ordering::Relaxed));
    fs::write(RANGE, format!("{first} {last}\n"))
}

fn part(turn: u16) -> (u16, u16) {
    let first = FIRST + turn % PARTS * SIZE;
    (first, first + (SIZE - 1))
}

fn is_ours(range: &str) -> bool {
    let bounds: Vec<u16> = range.split_whitespace().flat_map(str::parse).collect();
    match bounds[..] {
        [first, last] => {
            (first, last) == (FIRST, LAST) || (0..PARTS).any(|turn| part(turn) == (first, last))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_and_none_shares_a_port_with_another() {
        assert_eq!(part(0), (16000, 22191));
        assert_eq!(part(PARTS), part(0));
        for turn in 1..PARTS {
            assert_eq!(part(turn).0, part(turn - 1).1 + 1);
        }
        assert_eq!(part(PARTS - 1).1, LAST);
    }

    #[test]
    fn a_range_of_the_user_stays() {
        for ours in ["16000\t65535\n", "16000\t22191\n", "59344 65535"] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["32768\t60999\n", "20000 21000", ""] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
