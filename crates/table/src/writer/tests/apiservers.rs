//! Services that name an address at which the agent reaches the apiserver.

use super::*;

const APISERVER: [u8; 4] = [192, 168, 0, 9];
const PORT: u16 = 6443;

fn address(ip: [u8; 4]) -> SocketAddr {
    (ip, PORT).into()
}

fn at(ip: [u8; 4]) -> FrontendKey {
    FrontendKey::new(ip.into(), PORT, Protocol::Tcp)
}

/// A Service with the apiserver's port and these external IPs.
fn naming(external_ips: &[[u8; 4]]) -> Service {
    let mut web = service("web", 1, WEB);
    web.ports[0].port = PORT;
    Service { external_ips: external_ips.iter().map(|ip| (*ip).into()).collect(), ..web }
}

fn endpoints() -> Change {
    apply(slice("web-a", "web", &[1]))
}

fn following(addresses: &[[u8; 4]]) -> Writer {
    let mut writer = writer();
    writer.set_apiservers(addresses.iter().map(|ip| address(*ip)));
    writer
}

fn left_out(writer: &Writer) -> Vec<SocketAddr> {
    writer.left_out().iter().map(|frontend| frontend.address).collect()
}

/// The addresses of the offered frontends.
fn offered(plan: &Plan) -> Vec<SocketAddr> {
    plan.offer.iter().map(|state| state.frontend.address).collect()
}

#[test]
fn an_external_address_of_the_apiserver_is_not_served_and_all_else_of_the_service_is() {
    let other = [198, 51, 100, 7];
    for is_load_balancer in [false, true] {
        let mut writer = following(&[APISERVER]);
        let mut reader = writer.table().reader();
        let mut web = naming(&[APISERVER, other]);
        if is_load_balancer {
            web.load_balancer_ips = std::mem::take(&mut web.external_ips);
        }
        let plan = step(&mut writer, [apply(web), endpoints()]);
        assert!(reader.lookup(at(APISERVER)).is_none(), "{plan:?}");
        assert_eq!(offered(&plan), [address(WEB), address(other)]);
        assert_eq!(left_out(&writer), [address(APISERVER)]);
        let [notice] = &plan.notices[..] else { panic!("{:?}", plan.notices) };
        let kind = if is_load_balancer { "loadBalancer" } else { "externalIP" };
        let said = notice.to_string();
        assert!(
            said.contains(&format!("its {kind} 192.168.0.9:6443/TCP is the address of the apiserver")),
            "{said}"
        );
        assert_eq!(*notice.service(), ObjectName::new("default", "web"));
        assert!(writer.standing_notices().eq([notice]));

        step(&mut writer, [apply(naming(&[other]))]);
        assert!(left_out(&writer).is_empty() && writer.standing_notices().count() == 0);
    }
}

#[test]
fn another_port_or_protocol_or_address_is_nothing_to_the_apiserver() {
    let mut writer = following(&[[192, 168, 0, 8], APISERVER]);
    let mut web = naming(&[APISERVER]);
    web.ports[0].port = 443;
    let udp = ServicePort { name: "udp".into(), protocol: Protocol::Udp, port: PORT, node_port: None };
    web.ports.push(udp);
    let plan = step(&mut writer, [apply(web), endpoints()]);
    assert_eq!(plan.offer.len(), 4, "{plan:?}");
    assert!(left_out(&writer).is_empty() && plan.notices.is_empty());
}

#[test]
fn a_cluster_ip_is_served_although_the_apiserver_is_reached_there() {
    let mut writer = following(&[WEB]);
    let mut reader = writer.table().reader();
    let theirs = Service { name: ObjectName::new("default", "other"), ..naming(&[WEB]) };
    let theirs = Service { cluster_ips: vec![[10, 96, 0, 2].into()], ..theirs };
    step(&mut writer, [apply(naming(&[])), endpoints(), apply(theirs)]);
    assert_eq!(picks(&mut reader, at(WEB), 1), [1]);
    assert!(left_out(&writer).is_empty());
    // Once its own Service is gone, it is an external address like any other.
    step(&mut writer, [Change::Delete(ObjectRef::Service(ObjectName::new("default", "web")))]);
    assert!(reader.lookup(at(WEB)).is_none());
    assert_eq!(left_out(&writer), [address(WEB)]);
}

#[test]
fn a_node_port_of_the_apiserver_is_left_out_on_all_addresses_of_the_family() {
    let ips = [APISERVER.into(), [192, 168, 0, 10].into(), "2001:db8::1".parse::<IpAddr>().unwrap()];
    let config = WriterConfig {
        node_port_addresses: NodePortAddresses::Inside(Vec::new()),
        ..WriterConfig::new("here")
    };
    let mut writer = Writer::new(WriterConfig { frontends_lead_back: false, ..config });
    writer.set_interfaces(ips);
    writer.set_apiservers([address(APISERVER)]);
    let mut web = service("web", 1, WEB);
    web.cluster_ips.push("fd00::1".parse().unwrap());
    web.ports[0].node_port = Some(PORT);
    let of_node_port = |plan: &[FrontendState]| -> Vec<IpAddr> {
        let ports = plan.iter().filter(|state| state.kind == FrontendKind::NodePort);
        ports.map(|state| state.frontend.address.ip()).collect()
    };
    let plan = step(&mut writer, [apply(web), endpoints()]);
    assert_eq!(of_node_port(&plan.offer), ips[2..]);
    assert_eq!(plan.notices.len(), 1, "of the apiserver's address alone: {:?}", plan.notices);
    // The apiserver's address is no longer one of the node's.
    writer.set_interfaces(ips[1..].iter().copied());
    let plan = step(&mut writer, []);
    assert_eq!(of_node_port(&plan.offer), ips[1..2]);
    writer.set_interfaces(ips);
    let plan = step(&mut writer, []);
    assert_eq!(of_node_port(&plan.withdraw), ips[1..2]);
    assert_eq!(left_out(&writer).len(), 2);
}

#[test]
fn when_the_apiservers_addresses_change_frontends_are_judged_again() {
    let (first, second) = (APISERVER, [192, 168, 0, 10]);
    let mut writer = following(&[first]);
    let mut reader = writer.table().reader();
    step(&mut writer, [apply(naming(&[first, second])), endpoints()]);
    assert!(writer.plan().is_empty(), "nothing is left to do");
    writer.set_apiservers([address(second)]);
    let plan = step(&mut writer, []);
    let withdrawn: Vec<SocketAddr> = plan.withdraw.iter().map(|state| state.frontend.address).collect();
    assert_eq!((offered(&plan), withdrawn), (vec![address(first)], vec![address(second)]));
    assert_eq!(picks(&mut reader, at(first), 1), [1]);
    assert!(reader.lookup(at(second)).is_none());
    assert_eq!(plan.notices.len(), 1);
    step(&mut writer, [Change::Delete(ObjectRef::Service(ObjectName::new("default", "web")))]);
    step(&mut writer, [Change::Delete(ObjectRef::EndpointSlice(ObjectName::new("default", "web-a")))]);
    assert!(writer.is_forgetful());
}
