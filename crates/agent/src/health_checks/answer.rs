//! The answer to a load balancer.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use serde_json::Value;
use sluice_model::ObjectName;

/// The number of local endpoints, for load balancers that weight their targets.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The answer to any request: 200 if the Service has local endpoints and the proxy is healthy, else 503. Byte
/// for byte the same as kube-proxy's.
pub(super) fn answer(service: &ObjectName, local_endpoints: usize, healthy: bool) -> Response<Full<Bytes>> {
    let namespace = Value::from(&*service.namespace);
    let name = Value::from(&*service.name);
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\t\
         \"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    let mut response = Response::new(Full::from(body));
    if local_endpoints == 0 || !healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(local_endpoints));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn cases() {
        let service = ObjectName::new("default", "web");
        #[rustfmt::skip]
        let cases = [
            ("endpoints here, all is well",    1, true,  200),
            ("several endpoints",              3, true,  200),
            ("no endpoint here",               0, true,  503),
            ("the proxy is not healthy",       1, false, 503),
            ("neither",                        0, false, 503),
        ];
        for (name, endpoints, healthy, status) in cases {
            let response = answer(&service, endpoints, healthy);
            assert_eq!(response.status(), status, "{name}");
            assert_eq!(
                response.headers()["X-Load-Balancing-Endpoint-Weight"],
                endpoints.to_string(),
                "{name}"
            );
        }
    }

    #[tokio::test]
    async fn the_body_is_as_kube_proxy_writes_it() {
        let response = answer(&ObjectName::new("default", "web"), 2, true);
        assert_eq!(response.headers()["Content-Type"], "application/json");
        assert_eq!(response.headers()["X-Content-Type-Options"], "nosniff");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let wanted = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                      \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(body, wanted);
    }

    #[tokio::test]
    async fn a_name_with_quotes_is_still_json() {
        let service = ObjectName::new("de\"fault", "we\\b\n");
        let body = answer(&service, 0, true).into_body().collect().await.unwrap().to_bytes();
        let json: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["service"]["namespace"], "de\"fault");
        assert_eq!(json["service"]["name"], "we\\b\n");
    }
}
