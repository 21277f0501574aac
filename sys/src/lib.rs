//! The one place with `unsafe`: tables of the kernel's ip_tables are read and replaced through socket options whose buffers
//! are read *and* written, or hold a pointer, which nix, rustix and socket2 do not offer.
//!
//! What is in a table is octets here; `weft_proxy::redirect` knows what they mean. The structures are those of
//! `linux/netfilter/x_tables.h`, `linux/netfilter_ipv4/ip_tables.h` and `linux/netfilter_ipv6/ip6_tables.h`, in which both
//! versions of IP agree as far as they are needed here.

use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

#[cfg(not(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64",
    target_endian = "little"
)))]
compile_error!("the tables of ip_tables are laid out here for x86_64 and aarch64 only, 64 bits and little-endian");

/// The points in the kernel at which a table's chains can be (`NF_INET_NUMHOOKS`).
pub const HOOKS: usize = 5;
/// `XT_TABLE_MAXNAMELEN`: room for a table's name and the 0 behind it.
const NAME: usize = 32;
/// `struct ipt_getinfo`.
const INFO: usize = NAME + 4 + 2 * 4 * HOOKS + 4 + 4;
/// `struct ipt_get_entries` and `struct xt_counters_info` before what they hold.
const HEADER: usize = NAME + 8;

// Options of both levels: `IPT_SO_…`, `IP6T_SO_…`.
const SET_REPLACE: libc::c_int = 64;
const SET_ADD_COUNTERS: libc::c_int = 65;
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;

/// Which version of IP a table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// ip_tables.
    Ipv4,
    /// ip6_tables.
    Ipv6,
}

/// What the kernel says of a table, or is to know of a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Info {
    /// The hooks with a chain, a bit for each.
    pub valid_hooks: u32,
    /// Where the chain of each hook begins, in octets.
    pub hook_entry: [u32; HOOKS],
    /// Where the policy of each hook's chain is.
    pub underflow: [u32; HOOKS],
    /// Number of entries.
    pub entries: u32,
    /// Length of the entries in octets.
    pub size: u32,
}

/// How many packets and how many octets an entry has seen.
pub type Counters = [u64; 2];

/// A way to the tables of one version of IP, in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Tables {
    socket: OwnedFd,
    level: libc::c_int,
}

impl Tables {
    /// Opens it. Needs `NET_RAW`; everything else needs `NET_ADMIN`.
    ///
    /// # Errors
    /// What the kernel says. `EAFNOSUPPORT`: it does not have this version of IP.
    pub fn open(family: Family) -> io::Result<Self> {
        let (domain, level) = match family {
            Family::Ipv4 => (AddressFamily::Inet, libc::IPPROTO_IP),
            Family::Ipv6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
        };
        let socket = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        Ok(Self { socket, level })
    }

    /// What the kernel knows of a table, which begins to exist in this network namespace if it did not yet.
    ///
    /// # Errors
    /// What the kernel says. `ENOPROTOOPT`: it has no ip_tables; `ENOENT`: it has no such table.
    pub fn info(&self, table: &str) -> io::Result<Info> {
        let mut buffer = name(table)?.to_vec();
        buffer.resize(INFO, 0);
        let length = self.get(GET_INFO, &mut buffer)?;
        let mut words = buffer.get(NAME..length).unwrap_or_default().chunks_exact(4).map(word);
        let mut next = || words.next().ok_or(io::ErrorKind::UnexpectedEof);
        let mut info = Info { valid_hooks: next()?, ..Info::default() };
        for place in info.hook_entry.iter_mut().chain(&mut info.underflow) {
            *place = next()?;
        }
        info.entries = next()?;
        info.size = next()?;
        Ok(info)
    }

    /// The entries of a table of this size.
    ///
    /// # Errors
    /// What the kernel says. `EAGAIN`: the table has another size by now.
    pub fn entries(&self, table: &str, size: u32) -> io::Result<Vec<u8>> {
        let mut buffer = name(table)?.to_vec();
        buffer.extend(size.to_ne_bytes());
        buffer.resize(HEADER + usize::try_from(size).map_err(io::Error::other)?, 0);
        self.get(GET_ENTRIES, &mut buffer)?;
        Ok(buffer.split_off(HEADER))
    }

    /// Replaces a table that has had `old` entries, and returns what each of these has counted. Those of the new begin at 0.
    /// The size is that of `entries`, whatever `new` says.
    ///
    /// # Errors
    /// What the kernel says. `EAGAIN`: the table has another number of entries by now; `ENOENT`: a match or a target is
    /// unknown to it.
    pub fn replace(&self, table: &str, new: &Info, entries: &[u8], old: u32) -> io::Result<Vec<Counters>> {
        let mut counters: Vec<Counters> = vec![[0; 2]; usize::try_from(old).map_err(io::Error::other)?];
        // `struct ipt_replace`
        let mut buffer = name(table)?.to_vec();
        let size = u32::try_from(entries.len()).map_err(io::Error::other)?;
        let words = [new.valid_hooks, new.entries, size];
        for word in words.iter().chain(&new.hook_entry).chain(&new.underflow).chain([&old]) {
            buffer.extend(word.to_ne_bytes());
        }
        buffer.extend(counters.as_mut_ptr().expose_provenance().to_ne_bytes());
        buffer.extend(entries);
        // The pointer is to as many counters as the buffer says, which the kernel fills in.
        self.set(SET_REPLACE, &buffer)?;
        Ok(counters)
    }

    /// Adds to what the entries of a table have counted, all of them in order.
    ///
    /// # Errors
    /// What the kernel says. `EINVAL`: the table has another number of entries by now.
    pub fn add_counters(&self, table: &str, counters: &[Counters]) -> io::Result<()> {
        let mut buffer = name(table)?.to_vec();
        buffer.extend(u32::try_from(counters.len()).map_err(io::Error::other)?.to_ne_bytes());
        buffer.resize(HEADER, 0);
        buffer.extend(counters.iter().flatten().flat_map(|number| number.to_ne_bytes()));
        self.set(SET_ADD_COUNTERS, &buffer)
    }

    /// Private, and so only for options without a pointer in their buffers.
    #[expect(unsafe_code, reason = "no crate reads an option by a buffer that says what to read")]
    fn get(&self, option: libc::c_int, buffer: &mut [u8]) -> io::Result<usize> {
        let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
        // SAFETY: the kernel reads and writes no more than `length` octets of a buffer that this call alone has, and writes
        // the length.
        let result = unsafe {
            libc::getsockopt(self.socket.as_raw_fd(), self.level, option, buffer.as_mut_ptr().cast(), &raw mut length)
        };
        Errno::result(result)?;
        usize::try_from(length).map_err(io::Error::other)
    }

    /// Private, and so only for buffers whose pointers are good: see [`Tables::replace`].
    #[expect(unsafe_code, reason = "no crate sets an option by octets")]
    fn set(&self, option: libc::c_int, buffer: &[u8]) -> io::Result<()> {
        let length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
        // SAFETY: the kernel reads no more than `length` octets. The only pointer in them is the one of `replace`: exposed,
        // to memory that `replace` alone has, with room for exactly the counters that the buffer announces.
        let result =
            unsafe { libc::setsockopt(self.socket.as_raw_fd(), self.level, option, buffer.as_ptr().cast(), length) };
        Errno::result(result)?;
        Ok(())
    }
}

fn name(table: &str) -> io::Result<[u8; NAME]> {
    let mut out = [0; NAME];
    if table.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    out.iter_mut().zip(table.bytes()).for_each(|(slot, octet)| *slot = octet);
    Ok(out)
}

fn word(octets: &[u8]) -> u32 {
    octets.first_chunk().map_or(0, |octets| u32::from_ne_bytes(*octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert_eq!(name("nat").unwrap().get(..4), Some(&b"nat\0"[..]));
        assert!(name(&"x".repeat(31)).is_ok());
        assert_eq!(name(&"x".repeat(32)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
