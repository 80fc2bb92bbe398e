//! The network of a sandbox.
//!
//! ```text
//!  inner namespace (runsc takes eth0)   gateway namespace              host
//!  eth0 169.254.0.21/30 ──── veth ──── guest 169.254.0.22/30
//!                                      uplink <slot>.2/30 ── veth ── sb<tag><slot> <slot>.1/30
//!                                      egress rules, SNAT            forwarding, masquerading
//! ```
//!
//! The inner side is the same in every sandbox, so a restored or cloned guest sees no change. Rules
//! are kept twice: the gateway refuses what a guest must not reach, and the host's table refuses
//! again whatever should ever leave a gateway for the host itself or another sandbox.

use std::io;
use std::net::Ipv4Addr;

use super::paths::Paths;
use super::{Config, netns};
use crate::{GATEWAY_ADDRESS, GUEST_ADDRESS, NetworkPolicy};

/// Hardware addresses, locally administered, the same everywhere: neighbours are in the image.
const GUEST_MAC: &str = "02:fc:00:00:00:15";
const GATEWAY_MAC: &str = "02:fc:00:00:00:16";

/// Destinations that no guest may reach: private, shared, link-local (cloud metadata), loopback,
/// special-purpose, multicast and reserved ranges.
const DENIED: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, \
                      172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";

pub(super) fn inner_name(tag: &str, slot: u32) -> String {
    format!("sb-{tag}-{slot}-in")
}

pub(super) fn gateway_name(tag: &str, slot: u32) -> String {
    format!("sb-{tag}-{slot}-gw")
}

/// The host's end of the uplink. Interface names have at most 15 characters.
fn uplink_name(tag: &str, slot: u32) -> String {
    format!("sb{tag}{slot}")
}

/// The slot a namespace of this tag belongs to.
pub(super) fn slot_of(tag: &str, name: &str) -> Option<u32> {
    let rest = name
        .strip_prefix("sb-")?
        .strip_prefix(tag)?
        .strip_prefix('-')?;
    rest.strip_suffix("-in")
        .or_else(|| rest.strip_suffix("-gw"))?
        .parse()
        .ok()
}

/// First addresses of the slot: the host's and the gateway's end of the uplink.
fn uplink_addresses(config: &Config, slot: u32) -> (Ipv4Addr, Ipv4Addr) {
    let network = u32::from(config.uplink_network) + slot * 4;
    (Ipv4Addr::from(network + 1), Ipv4Addr::from(network + 2))
}

/// Turns on forwarding and writes the host's table, replacing one of an earlier server.
pub(super) fn prepare_host(config: &Config, paths: &Paths) -> io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let table = format!("sandbase_{}", paths.tag);
    let links = format!("\"sb{}*\"", paths.tag);
    let range = format!("{}/{}", config.uplink_network, config.uplink_prefix);
    netns::run_tool(
        "nft",
        &["-f", "-"],
        &format!(
            "table ip {table}
             delete table ip {table}
             table ip {table} {{
               chain input {{
                 type filter hook input priority filter - 5; policy accept;
                 iifname {links} reject with icmp admin-prohibited
               }}
               chain forward {{
                 type filter hook forward priority filter - 5; policy accept;
                 iifname {links} ip saddr != {range} drop
                 iifname {links} ip daddr {{ {range}, {DENIED} }} reject with icmp admin-prohibited
                 oifname {links} ct state != {{ established, related }} drop
               }}
               chain postrouting {{
                 type nat hook postrouting priority srcnat; policy accept;
                 ip saddr {range} oifname != {links} masquerade
               }}
             }}"
        ),
    )
}

/// Takes the host's table away again.
pub(super) fn clear_host(paths: &Paths) -> io::Result<()> {
    let table = format!("sandbase_{}", paths.tag);
    let script = format!("table ip {table}\ndelete table ip {table}\n");
    netns::run_tool("nft", &["-f", "-"], &script)
}

/// Makes the namespaces of a slot, wired up and with the rules for [`NetworkPolicy::Internet`].
pub(super) fn create(config: &Config, paths: &Paths, slot: u32) -> io::Result<()> {
    let inner = paths.netns(&inner_name(&paths.tag, slot));
    let gateway = paths.netns(&gateway_name(&paths.tag, slot));
    // The paths under /proc/sys/net mean the namespace of the thread that opens them.
    let no_ipv6 = || {
        for scope in ["all", "default"] {
            let key = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            match std::fs::write(key, "1") {
                // A kernel without IPv6.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    };
    netns::create(&inner, || {
        no_ipv6()?;
        // But for the loopback: programs inside listen on ::1. runsc takes the addresses it finds.
        match std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    })?;
    netns::create(&gateway, || {
        no_ipv6()?;
        // A connection closed after its guest died would keep the namespace alive for minutes of
        // retransmissions: three take as many seconds.
        std::fs::write("/proc/sys/net/ipv4/tcp_orphan_retries", "3")?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
    })?;

    let (host_end, gateway_end) = uplink_addresses(config, slot);
    let uplink = uplink_name(&paths.tag, slot);
    let inner_netns = inner_name(&paths.tag, slot);
    // The process id stands for the host's namespace: that of our main thread.
    let host = std::process::id();
    let links = format!(
        "link add uplink type veth peer name {uplink} netns {host}
         link add guest address {GATEWAY_MAC} type veth peer name eth0 address {GUEST_MAC} \
           netns {inner_netns}
         addr add {gateway_end}/30 dev uplink
         link set uplink up
         addr add {GATEWAY_ADDRESS}/30 dev guest
         link set guest up
         route add default via {host_end}
"
    );
    netns::inside(&gateway, || {
        netns::run_tool("ip", &["-batch", "-"], &links)?;
        netns::run_tool("nft", &["-f", "-"], &gateway_rules(&paths.tag, gateway_end))
    })?;
    let host_side = format!("addr add {host_end}/30 dev {uplink}\nlink set {uplink} up\n");
    netns::run_tool("ip", &["-batch", "-"], &host_side)?;
    let guest_side = format!(
        "link set lo up
         addr add {GUEST_ADDRESS}/30 dev eth0
         link set eth0 up
         route add default via {GATEWAY_ADDRESS}
"
    );
    netns::inside(&inner, || {
        netns::run_tool("ip", &["-batch", "-"], &guest_side)
    })
}

/// The gateway itself only opens connections (the edge's); it answers nobody.
fn gateway_rules(tag: &str, gateway_end: Ipv4Addr) -> String {
    format!(
        "table ip sandbase_{tag} {{
           chain input {{
             type filter hook input priority filter; policy drop;
             iifname \"guest\" ip saddr {GUEST_ADDRESS} ct state {{ established, related }} accept
           }}
           chain forward {{
             type filter hook forward priority filter; policy drop;
             iifname \"guest\" ip saddr != {GUEST_ADDRESS} drop
             iifname \"guest\" ip daddr {{ {DENIED} }} reject with icmp admin-prohibited
             iifname \"guest\" oifname \"uplink\" accept
             iifname \"uplink\" oifname \"guest\" ct state {{ established, related }} accept
           }}
           chain postrouting {{
             type nat hook postrouting priority srcnat; policy accept;
             oifname \"uplink\" snat to {gateway_end}
           }}
         }}"
    )
}

/// Changes a fresh slot to another policy.
pub(super) fn apply(paths: &Paths, slot: u32, policy: NetworkPolicy) -> io::Result<()> {
    match policy {
        NetworkPolicy::Internet => Ok(()),
        NetworkPolicy::Closed => {
            let rule = format!(
                "insert rule ip sandbase_{} forward iifname \"guest\" \
                 reject with icmp admin-prohibited\n",
                paths.tag
            );
            let gateway = paths.netns(&gateway_name(&paths.tag, slot));
            netns::inside(&gateway, || netns::run_tool("nft", &["-f", "-"], &rule))
        }
    }
}

/// Removes the namespaces of a slot, and with them its interfaces. Missing ones are success.
pub(super) fn remove(paths: &Paths, slot: u32) -> io::Result<()> {
    netns::remove(&paths.netns(&inner_name(&paths.tag, slot)))?;
    netns::remove(&paths.netns(&gateway_name(&paths.tag, slot)))
}

/// Whether the host's end of a slot's uplink is still there: the kernel removes the interfaces of a
/// dead namespace some time after it.
pub(super) fn uplink_exists(paths: &Paths, slot: u32) -> bool {
    std::path::Path::new("/sys/class/net")
        .join(uplink_name(&paths.tag, slot))
        .exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_read_back_from_its_namespace_names() {
        assert_eq!(slot_of("0badcafe", &inner_name("0badcafe", 12)), Some(12));
        assert_eq!(slot_of("0badcafe", &gateway_name("0badcafe", 0)), Some(0));
        assert_eq!(slot_of("0badcafe", "sb-deadbeef-12-in"), None);
        assert_eq!(slot_of("0badcafe", "else"), None);
    }

    #[test]
    fn interface_names_fit_for_the_largest_slot() {
        let config = Config::new("/data", "/runsc");
        let largest = config.slot_count() - 1;
        assert_eq!(largest, 16383);
        assert!(uplink_name("0badcafe", largest).len() <= 15);
        assert_eq!(
            uplink_addresses(&config, largest).1,
            Ipv4Addr::new(10, 219, 255, 254)
        );
    }
}
