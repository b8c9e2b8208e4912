//! The layout of values that this crate reads and writes in parts, at offsets that it takes from these types.
//! They match layout.h, which a test checks by BTF. No values of these types are ever made. Values that are
//! read and written as a whole are in `sluice-socket-maps`.

use crate::shape::{SLOTS_PER_LINE as IDS, SOURCES_TOGETHER as TOGETHER};

/// `struct address`.
#[repr(C)]
pub(crate) struct Address {
    pub(crate) ip: [u32; 4],
    pub(crate) port: u16,
    pad: u16,
}

/// `struct frontend_value`.
#[repr(C)]
pub(crate) struct Outcomes {
    pub(crate) node: u64,
    pub(crate) pod: u64,
}

/// `struct set`.
#[repr(C)]
pub(crate) struct Set {
    pub(crate) desc: u64,
    pub(crate) cursor: u32,
    pub(crate) rule: u32,
}

/// `struct keeping`.
#[repr(C)]
pub(crate) struct Keeping {
    word: u64,
}

/// `struct slot_line`.
#[repr(C)]
pub(crate) struct SlotLine {
    ids: [u32; IDS as usize],
}

/// `struct source`.
#[repr(C)]
pub(crate) struct Source {
    pub(crate) namespace: u64,
    service: Address,
    ip: [u32; 4],
    check: u32,
}

/// `struct sources`.
#[repr(C)]
pub(crate) struct Sources {
    at: [Source; TOGETHER as usize],
}

/// `struct conn`.
#[repr(C)]
pub(crate) struct Conn {
    pub(crate) service: Address,
    pub(crate) endpoint: Address,
    pub(crate) id: u32,
    pub(crate) incarnation: u32,
    pub(crate) since_ns: u64,
}

/// `struct translated`.
#[repr(C)]
pub(crate) struct Translated {
    pub(crate) namespace: u64,
    pub(crate) cookie: u64,
    pub(crate) conn: Conn,
    pub(crate) local: [u32; 4],
    pub(crate) local_port: u16,
    pub(crate) protocol: u8,
    pub(crate) family: u8,
    pub(crate) device: u32,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::mem::offset_of;
    use std::process::Command;
    use std::time::Duration;

    use serde_json::Value;
    use sluice_socket_maps::{
        Account, AffinityKey, AffinityValue, Endpoint, Failures, FrontendKey, MOST_SETS, Meta, STRIPES,
        Totals,
    };
    use sluice_table::{BUCKETS, Times};

    use super::*;
    use crate::shape::{SHAPES, SLOTS_PER_LINE, SOURCES_TOGETHER};

    /// The digest of layout 6. A change needs a new number, `LAYOUT`, because programs of two versions share
    /// pinned maps.
    const DIGEST: u64 = 8_492_357_279_155_847_692;

    const HEADER: &str = include_str!("../programs/layout.h");

    /// The structs in maps.
    const STRUCTS: [&str; 16] = [
        "account",
        "address",
        "affinity",
        "affinity_key",
        "conn",
        "endpoint",
        "flow",
        "flows",
        "frontend_key",
        "frontend_value",
        "keeping",
        "meta",
        "set",
        "source",
        "sources",
        "totals",
    ];

    /// Sizes of structs, and their fields with offsets, by BTF.
    fn structs() -> BTreeMap<String, (u64, Vec<(String, u64)>)> {
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/sluice.bpf.o");
        let dump = Command::new("bpftool").args(["--json", "btf", "dump", "file", object]).output().unwrap();
        let dump: Value = serde_json::from_slice(&dump.stdout).unwrap();
        let field = |member: &Value| {
            (member["name"].as_str().unwrap().to_owned(), member["bits_offset"].as_u64().unwrap() / 8)
        };
        let structs = dump["types"].as_array().unwrap().iter().filter_map(|kind| {
            let name =
                kind["name"].as_str().filter(|name| STRUCTS.contains(name) || OTHERS.contains(name))?;
            let fields = kind["members"].as_array()?.iter().map(field).collect();
            Some((name.to_owned(), (kind["size"].as_u64()?, fields)))
        });
        structs.collect()
    }

    /// Structs that the digest does not include.
    const OTHERS: [&str; 1] = ["slot_line"];

    /// A Rust struct in the form of [`structs`].
    macro_rules! rust {
        ($of:ty { $($field:ident $name:literal),* }) => {
            (size_of::<$of>() as u64, vec![$(($name.to_owned(), offset_of!($of, $field) as u64)),*])
        };
    }

    #[test]
    fn c_and_rust_have_the_same() {
        let structs = structs();
        let expected = [
            ("frontend_key", rust!(FrontendKey { addr "ip", port "port", protocol "protocol", pad "pad" })),
            ("affinity_key", rust!(AffinityKey { addr "ip", number "number" })),
            ("affinity", rust!(AffinityValue { id "id", check "check", last_ns "last_ns" })),
            (
                "endpoint",
                rust!(Endpoint {
                    addr "ip", port "port", flags "flags", incarnation "incarnation", failures "failures"
                }),
            ),
            (
                "account",
                rust!(Account {
                    connections "connections", closed "closed", failed "failed", served "served",
                    bytes_to "bytes_to", bytes_from "bytes_from", duration_us "duration_us"
                }),
            ),
            (
                "totals",
                rust!(Totals {
                    aborted "aborted", timeouts "timeouts", lives "lives", pad "pad"
                }),
            ),
            (
                "meta",
                rust!(Meta {
                    layout "layout", host_cookie "host_cookie", heartbeat_ns "heartbeat_ns",
                    relay_mark "relay_mark", sidecar_ports "sidecar_ports", flow_idle_ns "flow_idle_ns",
                    flags "flags", pad "pad"
                }),
            ),
        ];
        let in_pieces = [
            ("address", rust!(Address { ip "ip", port "port", pad "pad" })),
            ("frontend_value", rust!(Outcomes { node "node", pod "pod" })),
            ("set", rust!(Set { desc "desc", cursor "cursor", rule "rule" })),
            ("keeping", rust!(Keeping { word "word" })),
            ("slot_line", rust!(SlotLine { ids "ids" })),
            ("source", rust!(Source { namespace "namespace", service "service", ip "ip", check "check" })),
            ("sources", rust!(Sources { at "at" })),
            (
                "conn",
                rust!(Conn {
                    service "service", endpoint "endpoint", id "id", incarnation "incarnation", since_ns "since_ns"
                }),
            ),
        ];
        for (name, expected) in expected.into_iter().chain(in_pieces) {
            assert_eq!(structs[name], expected, "{name}");
        }
    }

    /// It is in no map, and BTF has only the types of maps.
    #[test]
    fn what_the_iterators_write_is_the_same_by_what_is_asserted_in_c() {
        let (size, fields): (u64, Vec<(String, u64)>) = rust!(Translated {
            namespace "namespace", cookie "cookie", conn "conn", local "local", local_port "local_port",
            protocol "protocol", family "family", device "device"
        });
        let asserted = HEADER.lines().filter_map(|line| {
            let (field, at) = line.strip_prefix("TRANSLATED_HAS(")?.strip_suffix(");")?.split_once(", ")?;
            Some((field.to_owned(), at.parse().unwrap()))
        });
        assert_eq!(asserted.collect::<Vec<_>>(), fields);
        assert!(HEADER.contains(&format!("_Static_assert(sizeof(struct translated) == {size}, ")));
    }

    /// Otherwise the kernel would copy beyond our buffers.
    #[test]
    fn maps_have_keys_and_values_of_the_size_that_is_in_the_programs() {
        let structs = structs();
        let (size, number) = (|name: &str| structs[name].0, |size: u32| u64::from(size));
        for (map, key, value) in [
            ("frontends", size("frontend_key"), size("frontend_value")),
            ("affinities", size("affinity_key"), size("affinity")),
            ("sources", 4, size("sources")),
            ("sets", 4, size("set")),
            ("keeping", 4, size("keeping")),
            ("slots", 4, size("slot_line")),
            ("endpoints", 4, size("endpoint")),
            ("accounts", 4, size("account")),
            ("totals", 4, size("totals")),
            ("conns", 4, size("conn")),
            ("flows", 4, size("flows")),
            ("meta", 4, size("meta")),
        ] {
            let shape = SHAPES.iter().find(|shape| shape.name == map).unwrap();
            assert_eq!((number(shape.key_size), number(shape.value_size)), (key, value), "{map}");
        }
    }

    #[test]
    fn another_layout_has_another_number() {
        let mut structs = structs();
        structs.retain(|name, _| STRUCTS.contains(&&**name));
        assert_eq!(structs.len(), STRUCTS.len());
        let digest = format!("{structs:?}").bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        assert_eq!(digest, DIGEST, "change LAYOUT too: {structs:#?}");
    }

    #[test]
    fn lives_are_counted_by_the_bounds_that_the_relay_has() {
        let line = HEADER.lines().find_map(|line| line.strip_prefix("#define LIFE_BOUNDS_US(X) ")).unwrap();
        let number = |item: &str| item.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        let bounds: Vec<u128> = line.split_whitespace().map(number).collect();
        let times = Times::of_lives([0; BUCKETS + 1], Duration::ZERO);
        assert_eq!(
            bounds,
            times.buckets().filter_map(|(bound, _)| Some(bound?.as_micros())).collect::<Vec<_>>()
        );
        assert!(HEADER.contains(&format!("#define LIVES {}\n", bounds.len() + 1)));
        assert!(HEADER.contains(&format!("#define OUTCOME_SET {:#x}\n", MOST_SETS - 1)));
        assert!(HEADER.contains(&format!("#define STRIPES {STRIPES}\n")));
        assert!(HEADER.contains(&format!("#define SLOTS_PER_LINE {SLOTS_PER_LINE}\n")));
        assert!(HEADER.contains(&format!("#define SOURCES_TOGETHER {SOURCES_TOGETHER}\n")));
        assert!(HEADER.contains(&format!("#define FAILURES_COUNT {}ull\n", Failures::MOST)));
    }
}
