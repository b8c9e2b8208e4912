//! What a kubelet and its container runtime make of a container: its command line, and a bundle for an OCI runtime.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, PodSpec, SecurityContext, Volume, VolumeMount};
use serde_json::{Value, json};

/// Where a pod finds its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What `containerd` hides, and what it lets nobody write (its `oci` package).
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The profile for system calls that runtimes have by default.
const SECCOMP: &str = "/usr/share/containers/seccomp.json";

/// All capabilities of Linux, in the order of their numbers.
const ALL_CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
    LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO \
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE \
    AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF \
    CHECKPOINT_RESTORE";

/// A container's arguments as the kubelet of a node gives them to it.
pub(crate) fn arguments(container: &Container, node: &str) -> Vec<String> {
    let environment = environment(container, node);
    let expand = |argument: &String| {
        environment
            .iter()
            .fold(argument.clone(), |text, (name, value)| text.replace(&format!("$({name})"), value))
    };
    container.args.iter().flatten().map(expand).collect()
}

fn environment(container: &Container, node: &str) -> BTreeMap<String, String> {
    let variables = container.env.iter().flatten().map(|variable| {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let value = match (&variable.value, field.map(|field| field.field_path.as_str())) {
            (Some(value), None) => value.clone(),
            (None, Some("spec.nodeName")) => node.to_owned(),
            other => panic!("{}: {other:?}", variable.name),
        };
        (variable.name.clone(), value)
    });
    variables.collect()
}

/// The node that a pod runs on.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    /// The unpacked image.
    pub(crate) root: PathBuf,
    /// The image's configuration (`config` of the OCI's image format).
    pub(crate) image: Value,
    /// Where the node's own files are.
    pub(crate) files: PathBuf,
    /// Directories of the node that are this machine's, by where the node has them.
    pub(crate) directories: BTreeMap<&'static str, PathBuf>,
    /// ConfigMaps: their files.
    pub(crate) config_maps: BTreeMap<&'static str, Vec<(&'static str, String)>>,
    /// Whether its runtime is one whose default profile has no bpf(2) for CAP_BPF.
    pub(crate) is_old: bool,
    /// The account's token and the apiserver's authority.
    pub(crate) token: &'static str,
    pub(crate) authority: String,
    /// Where containers find the Service `kubernetes`.
    pub(crate) service: &'static str,
}

impl Node {
    /// Writes the bundle of a container.
    pub(crate) fn bundle(&self, pod: &PodSpec, container: &Container, arguments: &[String], bundle: &Path) {
        let words =
            |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap_or_default() };
        let context = container.security_context.clone().unwrap_or_default();
        let privileged = context.privileged == Some(true);
        let command = container.command.clone().unwrap_or_else(|| words(&self.image["Entrypoint"]));
        let mut environment = words(&self.image["Env"]);
        environment.extend([
            format!("HOSTNAME={}", self.name),
            format!("KUBERNETES_SERVICE_HOST={}", self.service),
            "KUBERNETES_SERVICE_PORT=443".to_owned(),
        ]);
        environment.extend(
            self::environment(container, self.name)
                .into_iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        let capabilities = capabilities(&context);
        // A network namespace of its own it has not: the pod is in the node's.
        assert_eq!(pod.host_network, Some(true));
        let mut linux = json!({
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
        });
        let mounts = container.volume_mounts.iter().flatten();
        let propagations: Vec<&str> = mounts.map(|mount| propagation(mount, privileged)).collect();
        if let Some(most) = ["rshared", "rslave"].into_iter().find(|kind| propagations.contains(kind)) {
            linux["rootfsPropagation"] = json!(most);
        }
        if !privileged {
            linux["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }));
            linux["maskedPaths"] = json!(MASKED);
            linux["readonlyPaths"] = json!(READ_ONLY);
            let profile = pod.security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
            if profile.is_some_and(|profile| profile.type_ == "RuntimeDefault") {
                linux["seccomp"] = seccomp(&capabilities, self.is_old);
            }
        }
        let config = json!({
            "ociVersion": "1.0.2",
            "root": { "path": self.root, "readonly": context.read_only_root_filesystem == Some(true) },
            "process": {
                "user": { "uid": context.run_as_user.unwrap_or(0), "gid": 0 },
                "cwd": "/",
                "args": command.iter().chain(arguments).collect::<Vec<_>>(),
                "env": environment,
                "noNewPrivileges": context.allow_privilege_escalation == Some(false),
                "capabilities": {
                    "bounding": capabilities, "permitted": capabilities, "effective": capabilities,
                },
            },
            "mounts": self.mounts(pod, container, privileged, bundle),
            "linux": linux,
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    }

    fn mounts(&self, pod: &PodSpec, container: &Container, privileged: bool, bundle: &Path) -> Vec<Value> {
        let sys = if privileged { "rw" } else { "ro" };
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", sys] }),
        ];
        if !privileged {
            // As a node of cgroup v2 has it: the container's own.
            mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"] }));
        }
        let bind = |source: PathBuf, to: &str, options: &[&str]| {
            let options = [&["rbind"], options].concat();
            json!({ "destination": to, "type": "bind", "source": source, "options": options })
        };
        let account = bundle.join("account");
        write(&account, [("token", self.token), ("ca.crt", &self.authority), ("namespace", "kube-system")]);
        mounts.push(bind(account, ACCOUNT, &["ro"]));
        for mount in container.volume_mounts.iter().flatten() {
            let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name).unwrap();
            let options = if mount.read_only == Some(true) { "ro" } else { "rw" };
            let options = [options, propagation(mount, privileged)];
            mounts.push(bind(self.volume(volume, bundle), &mount.mount_path, &options));
        }
        mounts
    }

    fn volume(&self, volume: &Volume, bundle: &Path) -> PathBuf {
        if let Some(host) = &volume.host_path {
            let path = self.files.join(host.path.trim_start_matches('/'));
            match host.type_.as_deref() {
                Some("FileOrCreate") => {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
                }
                Some("Directory" | "DirectoryOrCreate") => match self.directories.get(host.path.as_str()) {
                    Some(directory) => return directory.clone(),
                    None => fs::create_dir_all(&path).unwrap(),
                },
                other => panic!("{}: {other:?}", host.path),
            }
            return path;
        }
        if volume.empty_dir.is_some() {
            let path = bundle.join(&volume.name);
            fs::create_dir_all(&path).unwrap();
            return path;
        }
        let name = volume.config_map.as_ref().expect("a volume that this knows").name.as_str();
        let path = bundle.join(&volume.name);
        write(&path, self.config_maps[name].iter().map(|(file, text)| (*file, text.as_str())));
        path
    }
}

/// Which mounts are seen on the other side. Kubernetes lets only privileged containers mount for the node.
fn propagation(mount: &VolumeMount, privileged: bool) -> &'static str {
    match mount.mount_propagation.as_deref() {
        None | Some("None") => "rprivate",
        Some("HostToContainer") => "rslave",
        Some("Bidirectional") if privileged => "rshared",
        other => panic!("{}: {other:?}", mount.name),
    }
}

fn write<'a>(directory: &Path, files: impl IntoIterator<Item = (&'a str, &'a str)>) {
    fs::create_dir_all(directory).unwrap();
    for (file, text) in files {
        fs::write(directory.join(file), text).unwrap();
    }
}

/// With their full names. What a runtime gives by itself does not matter: all is dropped, or all is given.
fn capabilities(context: &SecurityContext) -> Vec<String> {
    let full = |name: &str| format!("CAP_{name}");
    if context.privileged == Some(true) {
        // Those that can be had.
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
        let bounding = u64::from_str_radix(bounding.trim(), 16).unwrap();
        let names = ALL_CAPABILITIES.split_whitespace().enumerate();
        return names.filter(|(bit, _)| bounding & (1 << bit) != 0).map(|(_, name)| full(name)).collect();
    }
    let capabilities = context.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    capabilities.add.iter().flatten().map(|name| full(name)).collect()
}

/// The default profile for these capabilities, as a runtime is told it. Debian's has no rule for CAP_BPF, which containerd
/// and Docker have.
fn seccomp(capabilities: &[String], is_old: bool) -> Value {
    let mut profile: Value = serde_json::from_str(&fs::read_to_string(SECCOMP).unwrap()).unwrap();
    if !is_old && capabilities.iter().any(|capability| capability == "CAP_BPF") {
        let calls = profile["syscalls"].as_array_mut().unwrap();
        for call in calls.iter_mut() {
            call["names"].as_array_mut().unwrap().retain(|name| name != "bpf");
        }
        calls.push(json!({ "names": ["bpf"], "action": "SCMP_ACT_ALLOW" }));
    }
    let architecture = match std::env::consts::ARCH {
        "x86_64" => ("amd64", "SCMP_ARCH_X86_64"),
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        other => panic!("this test does not know {other}"),
    };
    let has = |conditions: &Value, kind: &str, holds: &dyn Fn(&str) -> bool| -> Option<bool> {
        Some(conditions[kind].as_array()?.iter().filter_map(Value::as_str).any(holds))
    };
    let has_capability = |name: &str| capabilities.iter().any(|capability| capability == name);
    let is_ours = |name: &str| name == architecture.0;
    let applies = |call: &&Value| {
        let (includes, excludes) = (&call["includes"], &call["excludes"]);
        has(includes, "caps", &has_capability).unwrap_or(true)
            && has(includes, "arches", &is_ours).unwrap_or(true)
            && !has(excludes, "caps", &has_capability).unwrap_or(false)
            && !has(excludes, "arches", &is_ours).unwrap_or(false)
    };
    let rule = |call: &Value| {
        let mut rule = json!({ "names": call["names"], "action": call["action"] });
        for optional in ["args", "errnoRet"] {
            if call.get(optional).is_some_and(|value| !value.is_null()) {
                rule[optional] = call[optional].clone();
            }
        }
        rule
    };
    let calls: Vec<Value> =
        profile["syscalls"].as_array().unwrap().iter().filter(applies).map(rule).collect();
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [architecture.1],
        "syscalls": calls,
    })
}
