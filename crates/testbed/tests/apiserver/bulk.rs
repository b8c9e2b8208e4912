use serde_json::json;
use sluice_testbed::apiserver::{Apiserver, Resource};

use crate::client::{service, start};

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;

fn objects() -> impl Iterator<Item = (Resource, serde_json::Value)> {
    (0..SERVICES).flat_map(|i| {
        let name = format!("service-{i:05}");
        let mut object = service(&name);
        object["spec"]["clusterIP"] = format!("10.96.{}.{}", i / 250, i % 250 + 1).into();
        let endpoints: Vec<_> = (0..ENDPOINTS)
            .map(|j| {
                json!({
                    "addresses": [format!("10.{}.{}.{}", j + 1, i / 250, i % 250 + 1)],
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "nodeName": format!("node-{j}"),
                })
            })
            .collect();
        let slice = json!({
            "metadata": { "name": format!("{name}-abcde"), "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        });
        [(Resource::Services, object), (Resource::EndpointSlices, slice)]
    })
}

#[tokio::test]
async fn a_large_cluster_is_loaded_listed_in_pages_and_watched() {
    let (server, client) = start(Apiserver::builder()).await;
    let version = server.resource_version();
    server.load(objects());
    let path = "/apis/discovery.k8s.io/v1/endpointslices";
    let all = client.get(path).await;
    assert_eq!(all.names().len(), SERVICES);
    let (mut paged, mut next, mut pages) = (0, String::new(), 0);
    loop {
        let page = client.get(&format!("{path}?limit=500{next}")).await;
        paged += page.names().len();
        pages += 1;
        let Some(token) = page.body["metadata"]["continue"].as_str() else { break };
        next = format!("&continue={token}");
    }
    assert_eq!((paged, pages), (SERVICES, SERVICES / 500));
    // The history holds all of it, so an earlier watch survives the load.
    let mut events = client.watch(path, &format!("resourceVersion={version}")).await;
    for i in [0, 1] {
        assert_eq!(events.told().await, format!("ADDED service-{i:05}-abcde"));
    }
}
