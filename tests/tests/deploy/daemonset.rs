//! What must be so for the agent, and between the parts of the DaemonSet.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice::admin::Expected;
use sluice::capture_args::CaptureMode;
use sluice::cli::{self, Command};
use sluice::listen::Place;

use crate::manifests::{OVERLAYS, containers, daemonset, overlay, pod, with_components};
use crate::pod::arguments;

/// Says what is wrong with a container's command line.
fn parse(container: &Container) -> Result<Command, String> {
    // What kubeadm writes is at hand, too.
    parse_with(container, &format!("{}/tests/deploy/kubeadm/", env!("CARGO_MANIFEST_DIR")))
}

/// The same, where kube-proxy's ConfigMap is in this directory.
fn parse_with(container: &Container, config_map: &str) -> Result<Command, String> {
    let arguments = arguments(container, "node-1").into_iter();
    let arguments = arguments.map(|argument| argument.replace("/var/lib/kube-proxy/", config_map));
    let words = std::iter::once("sluice".to_owned()).chain(arguments);
    let words: Vec<_> = words.map(Into::into).collect();
    cli::try_parse(&words).map(|cli| cli.command).map_err(|error| error.to_string())
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn the_agent_understands_its_command_lines() {
    for name in OVERLAYS {
        let pod = pod(&daemonset(&overlay(name)));
        let all: Vec<&Container> = containers(&pod).collect();
        let [settings, leftovers, agent] = all[..] else { panic!("{all:?}") };
        assert!(matches!(parse(settings), Ok(Command::Agent(args)) if args.init_only));
        assert!(matches!(parse(leftovers), Ok(Command::Cleanup(args)) if args.kube_proxy));
        let Command::Agent(agent_args) = parse(agent).unwrap_or_else(|error| panic!("{name}: {error}"))
        else {
            panic!("{name}: not an agent");
        };
        assert_eq!(agent_args.config.hostname_override.as_deref(), Some("node-1"));
        let kill = pod.termination_grace_period_seconds.unwrap();
        assert!(agent_args.grace_period.as_secs() < kill.try_into().unwrap(), "{name}: it is killed before");

        let mut mistaken = agent.clone();
        mistaken.args.as_mut().unwrap().push("--no-such-flag".into());
        assert!(parse(&mistaken).is_err());
    }
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn without_socket_mode_the_agent_has_three_capabilities_less_and_only_its_own_mounts() {
    for name in OVERLAYS {
        let (pod, without) =
            (pod(&daemonset(&overlay(name))), pod(&daemonset(&with_components(name, &["tproxy"]))));
        for (pod, mode) in [(&pod, CaptureMode::Auto), (&without, CaptureMode::Tproxy)] {
            for container in [&pod.init_containers.as_ref().unwrap()[0], &pod.containers[0]] {
                let Ok(Command::Agent(args)) = parse(container) else { panic!("{name}: {container:?}") };
                assert_eq!(args.capture.mode(), mode, "{name}: {}", container.name);
            }
        }
        let Ok(Command::Agent(args)) = parse(&pod.containers[0]) else { panic!("{name}") };
        let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
        let bpffs = mounts.iter().find(|mount| mount.name == "bpffs").unwrap();
        assert!(args.capture.socket.socket_pins.starts_with(&bpffs.mount_path), "{name}");
        let capabilities = |container: &Container| {
            let context = container.security_context.as_ref().unwrap();
            context.capabilities.as_ref().map(|all| all.add.clone().unwrap_or_default()).unwrap_or_default()
        };
        for (all, fewer) in containers(&pod).zip(containers(&without)) {
            let more: &[&str] = if all.name == "agent" { &["BPF", "PERFMON", "SYS_ADMIN"] } else { &[] };
            let wanted: Vec<String> =
                capabilities(fewer).into_iter().chain(more.iter().map(|more| (*more).into())).collect();
            assert_eq!(capabilities(all), wanted, "{name}: {}", all.name);
            for mount in all.volume_mounts.iter().flatten() {
                let is_privileged = all.security_context.as_ref().unwrap().privileged == Some(true);
                let is_allowed = is_privileged || mount.mount_propagation.as_deref() != Some("Bidirectional");
                assert!(is_allowed, "{name}: Kubernetes lets only privileged containers mount: {mount:?}");
                let is_looked_at = ["cgroup", "netns"].contains(&mount.name.as_str());
                assert!(!is_looked_at || mount.read_only == Some(true), "{name}: {mount:?}");
            }
        }
        let paths = |pod: &PodSpec| -> Vec<String> {
            let volumes = pod.volumes.iter().flatten().filter_map(|volume| volume.host_path.as_ref());
            volumes.map(|path| path.path.clone()).collect()
        };
        assert_eq!(paths(&without), ["/sys/fs/bpf", "/run/netns", "/run/xtables.lock"], "{name}");
        assert_eq!(
            paths(&pod),
            ["/sys/fs/bpf", "/sys/fs/cgroup", "/run/netns", "/run/xtables.lock"],
            "{name}"
        );
        let mounted: Vec<&str> =
            without.containers[0].volume_mounts.iter().flatten().map(|mount| mount.name.as_str()).collect();
        assert!(
            !mounted.iter().any(|name| ["bpffs", "cgroup", "netns"].contains(name)),
            "{name}: {mounted:?}"
        );
    }
}

/// The agent that is about to be replaced has the node's port: a probe over it would ask that one.
#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn probes_ask_the_agent_of_their_own_pod() {
    for name in OVERLAYS {
        let pod = pod(&daemonset(&overlay(name)));
        let [agent] = &pod.containers[..] else { panic!("{name}: one container is enough") };
        for (probe, wanted) in [
            (&agent.startup_probe, Expected::Live),
            (&agent.liveness_probe, Expected::Live),
            (&agent.readiness_probe, Expected::Ready),
        ] {
            let exec = probe.as_ref().and_then(|probe| probe.exec.as_ref()).unwrap();
            let words: Vec<_> = exec.command.iter().flatten().map(Into::into).collect();
            let Command::Status(status) = cli::try_parse(&words).unwrap().command else { panic!("{exec:?}") };
            assert_eq!(status.expect, Some(wanted), "{name}");
            // Nobody else's agent has a socket there.
            let mounts = agent.volume_mounts.iter().flatten();
            let directory = status.ask.admin_socket.parent().unwrap();
            let mount = mounts.into_iter().find(|mount| directory.ends_with(&mount.mount_path)).unwrap();
            let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name).unwrap();
            assert!(volume.empty_dir.is_some(), "{name}: {volume:?}");
        }
    }
}

/// Load balancers outside of the cluster ask for the node's health, over IPv6 as well; and Prometheus for metrics.
#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn the_health_of_the_node_is_asked_for_from_outside() {
    for name in OVERLAYS {
        let parse = |objects: Vec<_>| match parse(&pod(&daemonset(&objects)).containers[0]) {
            Ok(Command::Agent(args)) => args,
            other => panic!("{name}: {other:?}"),
        };
        let agent = parse(overlay(name));
        assert_eq!(agent.ports.healthz(agent.capture.mode()), Some(Place::Everywhere(10_256)), "{name}");
        let monitored = parse(with_components(name, &["monitoring"]));
        assert_eq!(monitored.ports.metrics(), Some(Place::Everywhere(10_249)), "{name}");
    }
}

/// What the administrator's configuration says is so in both containers that it is for, whatever the manifests say.
#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn the_configuration_file_counts_for_the_settings_and_for_the_agent() {
    let pod = pod(&daemonset(&overlay("kubeadm")));
    let directory = tempfile::tempdir().unwrap();
    let given = include_str!("kubeadm/config.conf");
    let more = "sluice:\n  disableBridgeNetfilter: false\n  gracePeriod: 7s\n";
    std::fs::write(directory.path().join("config.conf"), format!("{given}{more}")).unwrap();
    let there = format!("{}/", directory.path().display());
    for container in [&pod.init_containers.as_ref().unwrap()[0], &pod.containers[0]] {
        let mounts = container.volume_mounts.as_ref().unwrap();
        assert!(mounts.iter().any(|mount| mount.mount_path == "/var/lib/kube-proxy"), "{}", container.name);
        let Ok(Command::Agent(args)) = parse_with(container, &there) else { panic!("{}", container.name) };
        assert!(!args.capture.disable_bridge_netfilter, "{}", container.name);
        assert_eq!(args.grace_period.as_secs(), 7, "{}", container.name);
    }
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn the_new_agent_is_started_beside_the_old_one() {
    for name in OVERLAYS {
        let daemonset = daemonset(&overlay(name));
        let spec = daemonset.spec.as_ref().unwrap();
        let update =
            spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref()).unwrap();
        assert_eq!(update.max_unavailable, Some(IntOrString::Int(0)));
        assert!(!matches!(&update.max_surge, None | Some(IntOrString::Int(0))));
        let pod = pod(&daemonset);
        assert_eq!(pod.host_network, Some(true));
        // Ports of a pod in the node's network are the node's, and the scheduler gives each to one pod only.
        assert!(containers(&pod).all(|container| container.ports.is_none()));
        let labels = spec.template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
        assert_eq!(spec.selector.match_labels.as_ref(), labels);
    }
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn nothing_can_be_written_but_what_is_mounted_and_all_that_is_mounted_is_there() {
    for name in OVERLAYS {
        let pod = pod(&daemonset(&overlay(name)));
        let volumes: BTreeSet<&str> =
            pod.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect();
        let mounts = containers(&pod).flat_map(|container| container.volume_mounts.iter().flatten());
        assert_eq!(mounts.map(|mount| mount.name.as_str()).collect::<BTreeSet<_>>(), volumes, "{name}");
        for container in containers(&pod) {
            let context = container.security_context.as_ref().unwrap();
            assert_eq!(context.read_only_root_filesystem, Some(true), "{name}: {}", container.name);
            if context.privileged == Some(true) {
                let arguments = container.args.as_deref().unwrap_or_default();
                assert!(arguments.contains(&"--init-only".to_owned()), "{name}: {}", container.name);
                continue;
            }
            assert_eq!(context.allow_privilege_escalation, Some(false));
            let capabilities = context.capabilities.as_ref().unwrap();
            assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
        }
    }
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn the_image_is_that_of_this_version() {
    for name in ["kubeadm", "managed"] {
        for container in containers(&pod(&daemonset(&overlay(name)))) {
            let tag = container.image.as_ref().unwrap().rsplit(':').next().unwrap();
            assert_eq!(tag, env!("CARGO_PKG_VERSION"), "{name}: {}", container.name);
        }
    }
}

#[test]
#[ignore = "needs kubectl 1.21 or newer: .ci/manifests runs this"]
fn while_nodes_are_migrated_only_labelled_ones_have_the_agent() {
    let selector = |objects: Vec<_>| pod(&daemonset(&objects)).node_selector.unwrap();
    let plain = selector(overlay("kubeadm"));
    let mut wanted = plain.clone();
    wanted.insert("sluice.dev/node-proxy".into(), "sluice".into());
    assert_eq!(selector(with_components("kubeadm", &["migrate"])), wanted);
    assert_eq!(plain.len(), 1);
}
