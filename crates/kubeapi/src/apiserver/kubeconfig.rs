//! Kubeconfig files: the parts that say how to reach one cluster.
//!
//! Files are not merged. A name is looked up in one file after another, and the first that has it counts. The
//! result is the same, and paths stay relative to the file that contains them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use serde_saphyr::MessageFormatter as _;

use super::access::{Access, Auth, Exec, Identity, Secret, Tls, Trust};
use super::config::{self, ConfigError};
use super::files::Disk;

/// A kubeconfig file. Fields that are not used are not declared.
#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(skip)]
    path: PathBuf,
    clusters: Option<Vec<Named<Cluster>>>,
    users: Option<Vec<Named<User>>>,
    contexts: Option<Vec<Named<Context>>>,
    #[serde(rename = "current-context")]
    current_context: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "user", alias = "context", alias = "extension")]
    value: Option<T>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
    disable_compression: Option<bool>,
    extensions: Option<Vec<Named<Value>>>,
}

/// The extension of a cluster that holds configuration for exec plugins.
const EXEC_EXTENSION: &str = "client.authentication.k8s.io/exec";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<ExecConfig>,
    auth_provider: Option<serde::de::IgnoredAny>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ExecConfig {
    api_version: Option<String>,
    command: Option<String>,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    install_hint: Option<String>,
    provide_cluster_info: bool,
    interactive_mode: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
}

/// Reads the files, and all files that they name.
pub(super) fn load(
    disk: &Disk,
    paths: &[PathBuf],
    must_exist: bool,
    context: Option<&str>,
    masters: Vec<Url>,
) -> Result<Access, ConfigError> {
    let files = read_all(disk, paths, must_exist)?;
    let current = files.iter().filter_map(|file| file.current_context.as_deref());
    let wanted = context.or_else(|| current.into_iter().find(|name| !name.is_empty()));
    let Some((context_file, context)) = wanted.and_then(|name| find(&files, name, |file| &file.contexts))
    else {
        return Err(unknown_context(&files, wanted));
    };
    let cluster = context.cluster.as_deref().unwrap_or_default();
    let Some((cluster_file, cluster)) = find(&files, cluster, |file| &file.clusters) else {
        let what = format!("there is no cluster {cluster:?}");
        let mend = "write the name of one of the clusters";
        return Err(ConfigError::value(context_file.display(), "contexts[].context.cluster", what, mend));
    };
    let user = context.user.as_deref().filter(|name| !name.is_empty());
    let user = match user.map(|name| (name, find(&files, name, |file| &file.users))) {
        None => (context_file, &User::default()),
        Some((_, Some(found))) => found,
        Some((name, None)) => {
            let what = format!("there is no user {name:?}");
            let mend = "write the name of one of the users";
            return Err(ConfigError::value(context_file.display(), "contexts[].context.user", what, mend));
        }
    };
    access(Place::new(disk, cluster_file), cluster, Place::new(disk, user.0), user.1, masters)
}

fn read_all(disk: &Disk, paths: &[PathBuf], must_exist: bool) -> Result<Vec<File>, ConfigError> {
    let mut files = Vec::new();
    for path in paths {
        match disk.read(path) {
            Ok(bytes) => files.push(parse(path, &bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {}
            Err(error) => return Err(ConfigError::file(path, "the kubeconfig", &error)),
        }
    }
    match (files.is_empty(), paths.first()) {
        (true, Some(first)) => {
            let error = io::Error::from(rustix::io::Errno::NOENT);
            Err(ConfigError::file(first, "the kubeconfig that KUBECONFIG names", &error))
        }
        _ => Ok(files),
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<File, ConfigError> {
    let syntax = |line, what| ConfigError::Syntax { path: path.to_owned(), line, what };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| syntax(None, format!("not UTF-8 from byte {} on", error.valid_up_to())))?;
    let mut track = serde_path_to_error::Track::new();
    let read = |yaml: serde_saphyr::Deserializer<'_, '_>| {
        Option::<File>::deserialize(serde_path_to_error::Deserializer::new(yaml, &mut track))
    };
    let options = serde_saphyr::options! { with_snippet: false };
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, read);
    match read {
        Ok(file) => Ok(File { path: path.to_owned(), ..file.unwrap_or_default() }),
        Err(error) => {
            let field = track.path().to_string();
            let what = serde_saphyr::UserMessageFormatter.format_message(&error);
            let what = what.lines().next().unwrap_or_default();
            let field = if field == "." { String::new() } else { format!("{field}: ") };
            Err(syntax(error.location().map(|at| at.line()), format!("{field}{what}")))
        }
    }
}

/// Finds the first file that has an entry of this name.
fn find<'a, T>(
    files: &'a [File],
    name: &str,
    list: impl Fn(&File) -> &Option<Vec<Named<T>>>,
) -> Option<(&'a Path, &'a T)> {
    files.iter().find_map(|file| {
        let named = list(file).iter().flatten().find(|named| named.name == name)?;
        Some((file.path.as_path(), named.value.as_ref()?))
    })
}

fn unknown_context(files: &[File], wanted: Option<&str>) -> ConfigError {
    if let (None, [File { path, contexts: None, .. }]) = (wanted, files) {
        let what = "it has no contexts, so it is no kubeconfig".to_owned();
        return ConfigError::Syntax { path: path.clone(), line: None, what };
    }
    let paths: Vec<_> = files.iter().map(|file| file.path.display().to_string()).collect();
    let known: Vec<_> = files.iter().flat_map(|file| file.contexts.iter().flatten()).collect();
    let known: Vec<_> = known.into_iter().map(|named| named.name.as_str()).collect();
    ConfigError::UnknownContext {
        origin: format!("kubeconfig {}", paths.join(", ")),
        context: wanted.unwrap_or_default().to_owned(),
        known: if known.is_empty() { "is none".to_owned() } else { format!("are {}", known.join(", ")) },
    }
}

/// A kubeconfig file: the base of relative paths, and the origin of errors.
#[derive(Clone, Copy)]
struct Place<'a> {
    disk: &'a Disk,
    path: &'a Path,
}

impl<'a> Place<'a> {
    fn new(disk: &'a Disk, path: &'a Path) -> Self {
        Self { disk, path }
    }

    fn error(self, field: &str, what: impl ToString, mend: &str) -> ConfigError {
        ConfigError::value(format!("kubeconfig {}", self.path.display()), field, what, mend)
    }

    fn relative(self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// Returns the inline data, or else the content of the file.
    fn data_or_file(
        self,
        field: &str,
        what: &'static str,
        data: &Option<String>,
        file: &Option<String>,
    ) -> Result<Option<Vec<u8>>, ConfigError> {
        if let Some(data) = filled(data) {
            // Some tools wrap the base64 text.
            let data: String = data.split_ascii_whitespace().collect();
            let mend = "write the PEM file, encoded as base64";
            let decoded = BASE64_STANDARD.decode(data);
            return decoded
                .map(Some)
                .map_err(|error| self.error(&format!("{field}-data"), format!("not base64: {error}"), mend));
        }
        filled(file).map(|file| config::read(self.disk, &self.relative(file), what)).transpose()
    }
}

fn filled(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn access(
    cluster_place: Place<'_>,
    cluster: &Cluster,
    user_place: Place<'_>,
    user: &User,
    masters: Vec<Url>,
) -> Result<Access, ConfigError> {
    let origin = format!("kubeconfig {}", cluster_place.path.display());
    let servers = match filled(&cluster.server) {
        _ if !masters.is_empty() => masters,
        Some(server) => vec![config::server(&origin, "clusters[].cluster.server", server)?],
        None => {
            let mend = "write the address of the apiserver, such as https://10.0.0.2:6443";
            return Err(cluster_place.error("clusters[].cluster.server", "missing", mend));
        }
    };
    let trust = trust(cluster_place, cluster)?;
    let server_name = filled(&cluster.tls_server_name).map(str::to_owned);
    let proxy = filled(&cluster.proxy_url).map(|text| proxy(cluster_place, text)).transpose()?;
    if let Some(name) = &server_name {
        let field = "clusters[].cluster.tls-server-name";
        if name.parse::<std::net::IpAddr>().is_ok() {
            return Err(cluster_place.error(field, "an address is not supported", "write a DNS name"));
        }
        if proxy.is_some() {
            let what = "not supported together with proxy-url";
            return Err(cluster_place.error(field, what, "use a certificate for the server's address"));
        }
    }
    let identity = identity(user_place, user)?;
    let auth = auth(user_place, user, cluster, &trust)?;
    Ok(Access { servers, tls: Tls { trust, server_name, proxy, identity }, auth })
}

fn trust(place: Place<'_>, cluster: &Cluster) -> Result<Trust, ConfigError> {
    let authorities = place.data_or_file(
        "clusters[].cluster.certificate-authority",
        "the certificate authority",
        &cluster.certificate_authority_data,
        &cluster.certificate_authority,
    )?;
    match (cluster.insecure_skip_tls_verify == Some(true), authorities) {
        (true, None) => Ok(Trust::Anything),
        (true, Some(_)) => {
            let field = "clusters[].cluster.insecure-skip-tls-verify";
            let what = "true, and there is a certificate authority";
            Err(place.error(field, what, "remove one of them"))
        }
        (false, Some(authorities)) => Ok(Trust::Authorities(authorities)),
        (false, None) => Ok(Trust::System),
    }
}

fn proxy(place: Place<'_>, text: &str) -> Result<Url, ConfigError> {
    let field = "clusters[].cluster.proxy-url";
    let mend = "write one such as http://10.0.0.9:3128 or socks5://10.0.0.9:1080";
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h") && url.has_host() => {
            Ok(url)
        }
        Ok(url) => Err(place.error(field, format!("{url} is not the address of a proxy"), mend)),
        Err(error) => Err(place.error(field, format!("{text:?} is not a URL ({error})"), mend)),
    }
}

fn identity(place: Place<'_>, user: &User) -> Result<Option<Identity>, ConfigError> {
    let certificate = place.data_or_file(
        "users[].user.client-certificate",
        "the client certificate",
        &user.client_certificate_data,
        &user.client_certificate,
    )?;
    let key = place.data_or_file(
        "users[].user.client-key",
        "the key of the client certificate",
        &user.client_key_data,
        &user.client_key,
    )?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key: Secret(key) })),
        (None, None) => Ok(None),
        (Some(_), None) => {
            let what = "missing, but there is a client certificate";
            Err(place.error("users[].user.client-key", what, "write its key, too"))
        }
        (None, Some(_)) => {
            let what = "missing, but there is a client key";
            Err(place.error("users[].user.client-certificate", what, "write its certificate, too"))
        }
    }
}

/// The credentials. As in client-go, a token file takes precedence over a token, a token over a password, and a
/// password over a program.
fn auth(place: Place<'_>, user: &User, cluster: &Cluster, trust: &Trust) -> Result<Auth, ConfigError> {
    if user.auth_provider.is_some() {
        let what = "not supported; Kubernetes 1.26 removed it";
        return Err(place.error("users[].user.auth-provider", what, "use exec"));
    }
    if user.impersonate.is_some() {
        let mend = "remove it, and give the account itself the rules of deploy/base/rbac.yaml";
        return Err(place.error("users[].user.as", "impersonation is not supported", mend));
    }
    if let Some(file) = filled(&user.token_file) {
        return config::token_file(place.disk, &place.relative(file)).map(Auth::Token);
    }
    if let Some(token) = filled(&user.token) {
        return Ok(Auth::Token(Secret(token.trim().to_owned())));
    }
    if let Some(name) = filled(&user.username) {
        let password = Secret(user.password.clone().unwrap_or_default());
        return Ok(Auth::Basic { user: name.to_owned(), password });
    }
    let Some(exec) = &user.exec else { return Ok(Auth::None) };
    let Some(command) = filled(&exec.command) else {
        let mend = "write the program that prints the credentials";
        return Err(place.error("users[].user.exec.command", "missing", mend));
    };
    let api_version = exec.api_version.clone().unwrap_or_default();
    if !matches!(api_version.as_str(), super::exec::V1 | super::exec::V1BETA1) {
        let what = format!("{api_version:?} is not supported");
        return Err(place.error("users[].user.exec.apiVersion", what, super::exec::V1));
    }
    if exec.interactive_mode.as_deref() == Some("Always") {
        let what = "Always: nobody is there to type";
        let mend = "use a plugin that can do without, and Never";
        return Err(place.error("users[].user.exec.interactiveMode", what, mend));
    }
    let env = exec.env.iter().flatten();
    Ok(Auth::Exec(Exec {
        api_version,
        // A name without a slash is looked up in PATH.
        command: if command.contains('/') { place.relative(command) } else { command.into() },
        args: exec.args.clone().unwrap_or_default(),
        env: env.map(|variable| (variable.name.clone(), Secret(variable.value.clone()))).collect(),
        install_hint: filled(&exec.install_hint).map(str::to_owned),
        cluster: exec.provide_cluster_info.then(|| cluster_info(cluster, trust).to_string()),
    }))
}

/// The description of the cluster that `provideClusterInfo` passes to the program.
fn cluster_info(cluster: &Cluster, trust: &Trust) -> Value {
    let mut info = BTreeMap::new();
    let mut put = |key: &'static str, value: Option<Value>| value.map(|value| info.insert(key, value));
    put("server", cluster.server.as_deref().map(Value::from));
    put("tls-server-name", cluster.tls_server_name.as_deref().map(Value::from));
    put("insecure-skip-tls-verify", cluster.insecure_skip_tls_verify.map(Value::from));
    put("proxy-url", cluster.proxy_url.as_deref().map(Value::from));
    put("disable-compression", cluster.disable_compression.map(Value::from));
    if let Trust::Authorities(pem) = trust {
        put("certificate-authority-data", Some(BASE64_STANDARD.encode(pem).into()));
    }
    let extension = cluster.extensions.iter().flatten().find(|extension| extension.name == EXEC_EXTENSION);
    put("config", extension.and_then(|extension| extension.value.clone()));
    json!(info)
}

#[cfg(test)]
mod tests;
