//! An unnamed network namespace, and code, settings and programs that run in it.
//!
//! It exists as long as something holds it: this handle, a socket, a thread or a process. So the kernel
//! removes it when this process ends in any way.

use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::LabError;

/// The namespace of the thread that opens it.
const OWN_LINK: &str = "/proc/thread-self/ns/net";

/// A network namespace. Clones are the same namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: Arc<str>,
    link: Arc<File>,
}

impl Namespace {
    /// Creates a namespace with only a loopback interface, which is down. The name is for messages only.
    ///
    /// # Errors
    /// [`LabError::NotPermitted`] if the kernel refuses.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let make = || -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(OWN_LINK)
        };
        // On a thread of its own, so the calling thread stays where it is.
        let made = thread::scope(|scope| scope.spawn(make).join());
        match made.unwrap_or_else(|panic| resume_unwind(panic)) {
            Ok(link) => Ok(Self { name: name.into(), link: Arc::new(link) }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(LabError::NotPermitted(error.to_string()))
            }
            Err(source) => Err(LabError::Io { what: format!("making the namespace {name}"), source }),
        }
    }

    /// The namespace of the calling thread.
    pub(crate) fn current() -> io::Result<Self> {
        Ok(Self { name: "current".into(), link: Arc::new(File::open(OWN_LINK)?) })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that works in other processes of the same user: for `ip link set ... netns PATH` and `nsenter
    /// --net=PATH`.
    pub fn path(&self) -> PathBuf {
        // The process id in /proc, which may belong to an outer PID namespace.
        let process =
            std::fs::read_link("/proc/self").unwrap_or_else(|_| std::process::id().to_string().into());
        Path::new("/proc").join(process).join("fd").join(self.link.as_raw_fd().to_string())
    }

    /// Gives it a name, a file in the mount namespace of the calling thread, as container runtimes do.
    ///
    /// # Errors
    /// It takes root, and the directory must exist.
    pub fn name_at(&self, path: &Path) -> Result<(), LabError> {
        std::fs::write(path, "").map_err(LabError::io(&format!("making {}", path.display())))?;
        self.output("mount", &["--bind", "/proc/self/ns/net", &path.to_string_lossy()]).map(drop)
    }

    /// Runs a closure on a thread in the namespace and returns its result. If it panics, this panics. A
    /// socket that it creates always belongs to the namespace, wherever it is used.
    ///
    /// # Panics
    /// The namespace cannot be entered, which does not happen in a lab that could be created.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok::<_, io::Error>(work())
                })
                .join()
        });
        #[expect(clippy::expect_used, reason = "whoever made the namespace may enter it")]
        result.unwrap_or_else(|panic| resume_unwind(panic)).expect("a namespace of ours can be entered")
    }

    /// Moves the calling thread into the namespace; processes that it starts are in it.
    pub(crate) fn enter(&self) -> io::Result<()> {
        Ok(setns(&*self.link, CloneFlags::CLONE_NEWNET)?)
    }

    /// Writes a kernel setting, given as a path below `/proc/sys` such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// The setting does not exist, or is not writable.
    pub fn set(&self, setting: &str, value: &str) -> Result<(), LabError> {
        self.set_all(&[(setting, value)])
    }

    /// Writes kernel settings, one after the other.
    ///
    /// # Errors
    /// Like [`Namespace::set`], at the first that fails.
    pub fn set_all(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        // /proc/sys/net shows the namespace of the thread that opens a file.
        self.run(|| {
            for (setting, value) in settings {
                std::fs::write(Path::new("/proc/sys").join(setting), value).map_err(|source| {
                    LabError::Setting { setting: (*setting).into(), namespace: self.name.to_string(), source }
                })?;
            }
            Ok(())
        })
    }

    /// Reads a file below `/proc/sys` or `/proc/net` in the namespace, and trims white space.
    ///
    /// # Errors
    /// There is no such file.
    pub fn read(&self, path: &str) -> io::Result<String> {
        let path = match path.strip_prefix("/proc/net/") {
            // /proc/net is that of the process's main thread.
            Some(rest) => Path::new("/proc/thread-self/net").join(rest),
            None => path.into(),
        };
        self.run(|| std::fs::read_to_string(path)).map(|text| text.trim().to_owned())
    }

    /// Runs a program to its end and returns its standard output.
    ///
    /// # Errors
    /// It cannot be started, or its exit status is a failure.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String, LabError> {
        self.output_with_input(program, arguments, "")
    }

    /// The same for a program that reads `input`.
    ///
    /// # Errors
    /// Like [`Namespace::output`].
    pub fn output_with_input(
        &self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, LabError> {
        let run = || -> io::Result<_> {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            // The programs used here read all input before they answer. One that ends early reports its own
            // error.
            let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
            child.wait_with_output()
        };
        let output = self.run(run).map_err(|source| LabError::Program { program: program.into(), source })?;
        if !output.status.success() {
            return Err(LabError::Command {
                command: format!("{program} {}", arguments.join(" ")),
                namespace: self.name.to_string(),
                stderr: format!("{} ({})", String::from_utf8_lossy(&output.stderr).trim(), output.status),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `ip ARGUMENTS` and returns its output.
    ///
    /// # Errors
    /// Like [`Namespace::output`].
    pub fn ip(&self, arguments: &str) -> Result<String, LabError> {
        self.output("ip", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs commands with `ip -batch`, one per line. Stops at the first that fails.
    ///
    /// # Errors
    /// Like [`Namespace::output`].
    pub fn ip_batch(&self, commands: &str) -> Result<(), LabError> {
        self.output_with_input("ip", &["-batch", "-"], commands).map(drop)
    }

    /// Runs `nft ARGUMENTS` and returns its output.
    ///
    /// # Errors
    /// Like [`Namespace::output`].
    pub fn nft(&self, arguments: &str) -> Result<String, LabError> {
        self.output("nft", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs `nft -f -` with a ruleset in nft's language, in one transaction.
    ///
    /// # Errors
    /// Like [`Namespace::output`].
    pub fn nft_file(&self, ruleset: &str) -> Result<(), LabError> {
        self.output_with_input("nft", &["-f", "-"], ruleset).map(drop)
    }

    /// The number of nftables rules in all tables.
    ///
    /// # Errors
    /// Like [`Namespace::output`].
    pub fn rules(&self) -> Result<usize, LabError> {
        let listing = self.output("nft", &["--json", "list", "ruleset"])?;
        let listing: serde_json::Value = serde_json::from_str(&listing)
            .map_err(|error| LabError::Io { what: "reading nft's JSON".into(), source: error.into() })?;
        let objects = listing.get("nftables").and_then(serde_json::Value::as_array);
        Ok(objects.into_iter().flatten().filter(|object| object.get("rule").is_some()).count())
    }

    /// The number of conntrack entries of all protocols.
    ///
    /// # Errors
    /// The kernel has no connection tracking.
    pub fn conntrack_entries(&self) -> Result<u64, LabError> {
        let setting = "/proc/sys/net/netfilter/nf_conntrack_count";
        let count = self.read(setting).map_err(LabError::io(setting))?;
        count.parse().map_err(|error| LabError::io(setting)(io::Error::other(error)))
    }

    /// The interfaces that are up for IPv6: those with a usable link-local address.
    pub(crate) fn links_up(&self) -> io::Result<Vec<String>> {
        const TENTATIVE: u8 = 0x40;
        // Address, index, prefix length, scope, flags, name; numbers are hexadecimal.
        let table = self.read("/proc/net/if_inet6")?;
        let links = table.lines().filter_map(|line| {
            let [address, _, _, _, flags, name] =
                line.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
            let address = Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?);
            let usable = u8::from_str_radix(flags, 16).ok()? & TENTATIVE == 0;
            (usable && address.is_unicast_link_local()).then(|| name.to_owned())
        });
        Ok(links.collect())
    }
}
