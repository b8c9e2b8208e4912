//! Exec plugins: a program that prints credentials, `client.authentication.k8s.io/v1`.

use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::process::Command;

use super::access::{Exec, Identity, Secret};

/// The versions of the protocol.
pub(super) const V1: &str = "client.authentication.k8s.io/v1";
pub(super) const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";

/// The timeout of the program, which may use the network.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long before they expire credentials are renewed, in case clocks differ.
const MARGIN: Duration = Duration::from_secs(10);

/// How much of the program's output or errors is shown, in characters.
const MAX_SHOWN: usize = 200;

/// The credentials that a program returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credential {
    pub(super) token: Option<Secret<String>>,
    pub(super) identity: Option<Identity>,
    expires: Option<Timestamp>,
}

impl Credential {
    pub(super) fn is_fresh(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| {
            let left = expires.duration_since(now);
            left.is_positive() && left.unsigned_abs() > MARGIN
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    api_version: String,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    expiration_timestamp: Option<Timestamp>,
}

/// Runs the program.
///
/// # Errors
/// What went wrong and how to fix it, in one line.
pub(super) async fn run(exec: &Exec) -> Result<Credential, String> {
    let name = exec.command.display();
    let mut info = json!({
        "apiVersion": exec.api_version,
        "kind": "ExecCredential",
        "spec": { "interactive": false },
    });
    if let Some(cluster) = &exec.cluster {
        info["spec"]["cluster"] = serde_json::from_str(cluster).unwrap_or_default();
    }
    let mut command = Command::new(&exec.command);
    command
        .args(&exec.args)
        .envs(exec.env.iter().map(|(name, Secret(value))| (name, value)))
        .env("KUBERNETES_EXEC_INFO", info.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = match tokio::time::timeout(TIMEOUT, command.output()).await {
        Err(_) => return Err(format!("it took longer than {} s: run it by hand", TIMEOUT.as_secs())),
        Ok(Err(error)) => {
            let mend = exec.install_hint.as_deref().unwrap_or("install it on this node, or correct its path");
            return Err(format!("{name} cannot be run: {error}: {}", shown(mend.as_bytes())));
        }
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        let said = shown(&output.stderr);
        return Err(format!("{name} failed ({}): {said}: run it by hand", output.status));
    }
    read(exec, &output.stdout).map_err(|what| format!("{name}: {what}: run it by hand"))
}

fn read(exec: &Exec, output: &[u8]) -> Result<Credential, String> {
    // Neither the output nor an error that may quote it is shown: it contains the credentials.
    let credential: ExecCredential = serde_json::from_slice(output)
        .map_err(|error| format!("what it printed is no ExecCredential (line {})", error.line()))?;
    if credential.api_version != exec.api_version {
        let (wanted, got) = (&exec.api_version, shown(credential.api_version.as_bytes()));
        return Err(format!("it printed apiVersion {got} instead of {wanted}"));
    }
    let status = credential.status.ok_or("it printed no status")?;
    let identity = match (status.client_certificate_data, status.client_key_data) {
        (Some(certificate), Some(key)) => {
            Some(Identity { certificate: certificate.into_bytes(), key: Secret(key.into_bytes()) })
        }
        (None, None) => None,
        _ => return Err("it printed a client certificate or its key, but not both".to_owned()),
    };
    let token = status.token.map(|token| Secret(token.trim().to_owned()));
    if token.is_none() && identity.is_none() {
        return Err("it printed neither a token nor a client certificate".to_owned());
    }
    Ok(Credential { token, identity, expires: status.expiration_timestamp })
}

/// Foreign text, as part of one line.
fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let text = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    text.take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(script: &str) -> Exec {
        Exec {
            api_version: V1.to_owned(),
            command: "sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: vec![("WHO".to_owned(), Secret("me".to_owned()))],
            install_hint: None,
            cluster: Some(r#"{"server":"https://a"}"#.to_owned()),
        }
    }

    fn printing(status: serde_json::Value) -> Exec {
        let credential = json!({ "apiVersion": V1, "kind": "ExecCredential", "status": status });
        exec(&format!("printf %s '{credential}'"))
    }

    #[tokio::test]
    async fn a_program_prints_a_token_or_a_certificate() {
        let token = run(&printing(json!({ "token": "t\n" }))).await.unwrap();
        assert_eq!(token.token, Some(Secret("t".to_owned())));
        assert!(token.is_fresh(Timestamp::MAX));
        let identity = json!({ "clientCertificateData": "C", "clientKeyData": "K" });
        let identity = run(&printing(identity)).await.unwrap().identity.unwrap();
        assert_eq!(identity, Identity { certificate: b"C".to_vec(), key: Secret(b"K".to_vec()) });
    }

    #[tokio::test]
    async fn credentials_are_stale_shortly_before_they_expire() {
        let status = json!({ "token": "t", "expirationTimestamp": "2026-01-01T00:01:00Z" });
        let credential = run(&printing(status)).await.unwrap();
        assert!(credential.is_fresh("2026-01-01T00:00:00Z".parse().unwrap()));
        assert!(!credential.is_fresh("2026-01-01T00:00:55Z".parse().unwrap()));
        assert!(!credential.is_fresh("2026-01-01T00:02:00Z".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_program_knows_the_cluster_and_its_environment() {
        let script = r#"
            echo "$KUBERNETES_EXEC_INFO" | grep -q '"server":"https://a"' || exit 1
            printf '{"apiVersion":"client.authentication.k8s.io/v1","status":{"token":"%s"}}' "$WHO""#;
        assert_eq!(run(&exec(script)).await.unwrap().token, Some(Secret("me".to_owned())));
    }

    #[tokio::test]
    async fn what_goes_wrong_is_said_in_one_line_and_without_secrets() {
        let missing = Exec { command: "/no/such".into(), ..exec("") };
        let hint = Exec { install_hint: Some("brew install\nit".to_owned()), ..missing.clone() };
        let version = r#"echo '{"apiVersion":"v2","status":{"token":"secret"}}'"#;
        for (exec, part) in [
            (missing, "cannot be run"),
            (hint, "brew install it"),
            (exec("echo not now >&2; exit 3"), "failed (exit status: 3): not now"),
            (exec("echo secret"), "no ExecCredential (line 1)"),
            (exec(version), "apiVersion v2 instead of"),
            (printing(json!(null)), "no status"),
            (printing(json!({})), "neither a token nor a client certificate"),
            (printing(json!({ "clientKeyData": "secret" })), "not both"),
        ] {
            let error = run(&exec).await.unwrap_err();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("secret") && !error.contains('\n'), "{error}");
        }
    }
}
