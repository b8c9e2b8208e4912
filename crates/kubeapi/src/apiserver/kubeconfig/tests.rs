use std::fs;

use super::*;

fn load(
    paths: &[PathBuf],
    must_exist: bool,
    context: Option<&str>,
    masters: Vec<Url>,
) -> Result<Access, ConfigError> {
    super::load(&Disk::default(), paths, must_exist, context, masters)
}

const MINIMAL: &str = "
clusters: [{name: c, cluster: {server: 'https://10.0.0.2:6443'}}]
users: [{name: u, user: {token: secret}}]
contexts:
- {name: one, context: {cluster: c, user: u}}
- {name: two, context: {cluster: c}}
current-context: one
";

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Loads one file whose user and cluster have these lines.
    fn load(&self, cluster: &str, user: &str) -> Result<Access, String> {
        let text = format!(
            "clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        );
        one(self.write("config", text), None).map_err(|error| error.to_string())
    }
}

fn one(path: PathBuf, context: Option<&str>) -> Result<Access, ConfigError> {
    load(&[path], true, context, Vec::new())
}

const SERVER: &str = "server: 'https://10.0.0.2:6443'";

#[test]
fn a_context_names_a_cluster_and_a_user() {
    let files = Files::new();
    let path = files.write("config", MINIMAL);
    let access = one(path.clone(), None).unwrap();
    assert_eq!(access.servers[0].as_str(), "https://10.0.0.2:6443/");
    assert_eq!(access.auth, Auth::Token(Secret("secret".to_owned())));
    assert_eq!(access.tls, Tls::default());
    assert_eq!(one(path.clone(), Some("two")).unwrap().auth, Auth::None);
    let master = vec![Url::parse("https://10.0.0.3/").unwrap()];
    assert_eq!(load(&[path], true, None, master.clone()).unwrap().servers, master);
}

#[test]
fn of_several_files_the_first_with_a_name_counts() {
    let files = Files::new();
    let first = files.write("first", "users: [{name: u, user: {tokenFile: t}}]\ncurrent-context: two\n");
    files.write("t", "of-the-first\n");
    let second = files.write("second", MINIMAL);
    let missing = files.0.path().join("missing");
    let paths = [missing.clone(), first, second];
    assert_eq!(load(&paths, false, None, Vec::new()).unwrap().auth, Auth::None);
    let access = load(&paths, false, Some("one"), Vec::new()).unwrap();
    assert_eq!(access.auth, Auth::Token(Secret("of-the-first".to_owned())));
    let error = load(&paths, true, None, Vec::new()).unwrap_err().to_string();
    assert!(error.contains("missing: the kubeconfig: No such file"), "{error}");
    let error = load(&[missing], false, None, Vec::new()).unwrap_err().to_string();
    assert!(error.contains("missing: the kubeconfig that KUBECONFIG names"), "{error}");
}

#[test]
fn data_wins_over_files_and_files_are_relative_to_the_kubeconfig() {
    let files = Files::new();
    files.write("ca.pem", "CA");
    files.write("cert.pem", "CERT");
    files.write("key.pem", "KEY");
    let user = "client-certificate: cert.pem, client-key: key.pem, client-key-data: 'REFU\n QQ=='";
    let access = files.load(&format!("{SERVER}, certificate-authority: ca.pem"), user).unwrap();
    assert_eq!(access.tls.trust, Trust::Authorities(b"CA".to_vec()));
    let identity = access.tls.identity.unwrap();
    assert_eq!((identity.certificate, identity.key), (b"CERT".to_vec(), Secret(b"DATA"[..].to_vec())));
}

#[test]
fn credentials() {
    let files = Files::new();
    files.write("token", " of-the-file \n");
    let auth = |user: &str| files.load(SERVER, user).unwrap().auth;
    assert_eq!(auth("tokenFile: token, token: inline"), Auth::Token(Secret("of-the-file".to_owned())));
    assert_eq!(auth(r#"token: "inline\n""#), Auth::Token(Secret("inline".to_owned())));
    let password = Secret("p".to_owned());
    assert_eq!(auth("username: n, password: p"), Auth::Basic { user: "n".to_owned(), password });
    assert_eq!(auth(""), Auth::None);
    let user = "exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, args: [a], \
                env: [{name: A, value: b}], provideClusterInfo: true, interactiveMode: IfAvailable}";
    let Auth::Exec(exec) = auth(user) else { panic!("not an exec plugin") };
    assert_eq!(exec.command, files.0.path().join("./plugin"));
    assert_eq!((exec.args, exec.env), (vec!["a".to_owned()], vec![("A".to_owned(), Secret("b".to_owned()))]));
    assert_eq!(exec.cluster.unwrap(), r#"{"server":"https://10.0.0.2:6443"}"#);
    let extended = format!(
        "{SERVER}, extensions: [{{name: other, extension: 1}}, {{name: client.authentication.k8s.io/exec, extension: \
         {{audience: a}}}}]"
    );
    let Auth::Exec(exec) = files.load(&extended, user).unwrap().auth else { panic!("not an exec plugin") };
    let wanted = r#"{"config":{"audience":"a"},"server":"https://10.0.0.2:6443"}"#;
    assert_eq!(exec.cluster.unwrap(), wanted, "what the plugin's maker has put there");
}

#[test]
fn what_is_wrong_is_named_by_file_and_field() {
    let files = Files::new();
    for (cluster, user, parts) in [
        ("", "", ["clusters[].cluster.server: missing", "write the address"]),
        ("server: 'a b'", "", ["clusters[].cluster.server: \"a b\"", "such as https://"]),
        (
            "server: 'https://a', certificate-authority: no.pem",
            "",
            ["no.pem: the certificate authority", "name a file"],
        ),
        (
            "server: 'https://a', certificate-authority-data: '%'",
            "",
            ["certificate-authority-data: not base64", "encoded as base64"],
        ),
        (
            "server: 'https://a', certificate-authority-data: QQ==, insecure-skip-tls-verify: true",
            "",
            ["insecure-skip-tls-verify: true, and there is", "remove one"],
        ),
        ("server: 'https://a', proxy-url: 'ftp://b'", "", ["proxy-url: ftp://b", "socks5://"]),
        ("server: 'https://a', tls-server-name: 10.0.0.1", "", ["tls-server-name: an address", "DNS name"]),
        (SERVER, "client-certificate-data: QQ==", ["users[].user.client-key: missing", "its key"]),
        (SERVER, "client-key-data: QQ==", ["users[].user.client-certificate: missing", "its certificate"]),
        (SERVER, "tokenFile: none", ["none: the token", "name a file"]),
        (SERVER, "as: root", ["users[].user.as: impersonation", "deploy/base/rbac.yaml"]),
        (SERVER, "auth-provider: {name: gcp}", ["auth-provider: not supported", "use exec"]),
        (SERVER, "exec: {command: a}", ["exec.apiVersion: \"\" is not supported", "k8s.io/v1"]),
        (SERVER, "exec: {}", ["exec.command: missing", "write the program"]),
    ] {
        let error = files.load(cluster, user).unwrap_err();
        let file = files.0.path().to_str().unwrap();
        for part in parts.into_iter().chain([file]) {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_context_cluster_or_user_that_is_not_there() {
    let files = Files::new();
    let path = files.write("config", MINIMAL);
    let error = one(path.clone(), Some("three")).unwrap_err().to_string();
    assert!(error.contains("no context \"three\"") && error.contains("there are one, two"), "{error}");
    let path = files.write("config", MINIMAL.replace("current-context: one", ""));
    let error = one(path, None).unwrap_err().to_string();
    assert!(error.contains("no context \"\"") && error.contains("--context"), "{error}");
    let path = files.write("config", "");
    let error = one(path.clone(), None).unwrap_err().to_string();
    assert!(error.contains("it has no contexts") && error.contains("name another one"), "{error}");
    assert!(one(path, Some("one")).unwrap_err().to_string().contains("there is none"));
    for (from, to, part) in
        [("cluster: c", "cluster: d", "no cluster \"d\""), ("user: u}", "user: v}", "no user \"v\"")]
    {
        let path = files.write("config", MINIMAL.replace(from, to));
        let error = one(path, None).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn bad_syntax_is_named_by_line_and_field() {
    let files = Files::new();
    for (text, line, part) in [
        ("clusters:\n- name: a\n  cluster:\n    server: [1]\n", Some(4), "clusters[0]"),
        ("clusters:\n- cluster: {}\n", Some(2), "name"),
        ("current-context: a\nusers: 7\n", Some(2), "users"),
        ("a: b\n c: d\n  - e", Some(2), ""),
        ("hello", Some(1), ""),
    ] {
        match one(files.write("config", text), None).unwrap_err() {
            ConfigError::Syntax { line: found, what, .. } => {
                assert_eq!(found, line, "{text}: {what}");
                assert!(what.contains(part) && !what.contains('\n'), "{text}: {what}");
            }
            other => panic!("{text}: {other}"),
        }
    }
    let error = one(files.write("config", b"\xff\xfe"), None).unwrap_err().to_string();
    assert!(
        error.ends_with("config: not UTF-8 from byte 0 on: correct the file, or name another one"),
        "{error}"
    );
}

#[test]
fn secrets_are_not_shown() {
    let access = Files::new().load(SERVER, "token: hidden, username: n, password: hidden").unwrap();
    assert!(!format!("{access:?}").contains("hidden"));
}
