//! The connection to an object store: credentials from the environment, a runtime of its own, the store's clock.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, Extensions};
use reqwest::Url;
use tokio::runtime::{Builder, Runtime};

use super::error::StoreError;
use super::location::{Address, Provider};
use crate::secret::Secret;
use crate::teacher::install_tls;

/// Opens the store that `address` names with what the environment says of it.
pub(super) fn connect(address: &Address) -> Result<Arc<dyn ObjectStore>, StoreError> {
    refuse_credentials_in_endpoints(address, variables())?;
    match address.provider {
        Provider::S3 => connect_s3(address, AmazonS3Builder::from_env()),
        Provider::Google => {
            install_tls();
            let builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(&address.bucket)
                .with_http_connector(Connector(Peer::Any));
            opened(address, builder.build())
        }
        Provider::Azure => {
            install_tls();
            let builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(&address.bucket)
                .with_http_connector(Connector(Peer::Any));
            opened(address, builder.build())
        }
    }
}

/// Opens the store that `address` names with what `builder` says of it.
pub(super) fn connect_s3(
    address: &Address,
    builder: AmazonS3Builder,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    install_tls();
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    let builder = builder
        .with_bucket_name(&address.bucket)
        // One file is removed at a time, and not every server that speaks S3 knows the call for many.
        .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true")
        .with_http_connector(Connector(Peer::of(endpoint.as_deref())));
    opened(address, builder.build())
}

fn opened<S: ObjectStore>(
    address: &Address,
    built: object_store::Result<S>,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    match built {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => Err(StoreError {
            location: address.text(),
            problem: redacted(&error.to_string()),
            hint: "check the variables of the environment that docs/stores.md names".into(),
        }),
    }
}

/// The variables of the environment that are text.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// The library takes an endpoint with a user, and writes it into its messages.
fn refuse_credentials_in_endpoints(
    address: &Address,
    mut variables: impl Iterator<Item = (String, String)>,
) -> Result<(), StoreError> {
    let start = match address.provider {
        Provider::S3 => "AWS_",
        Provider::Google => "GOOGLE_",
        Provider::Azure => "AZURE_",
    };
    let is_endpoint = |name: &str| {
        name.starts_with(start)
            && (name.contains("ENDPOINT") || name == "GOOGLE_BASE_URL")
            && !name.contains("PROXY")
    };
    match variables.find(|(name, value)| is_endpoint(name) && value.contains(['@', '?', '#'])) {
        None => Ok(()),
        Some((name, _)) => Err(StoreError {
            location: address.text(),
            problem: format!("`{name}` carries a user, a key or a query"),
            hint: "give credentials in their own variables; docs/stores.md names them".into(),
        }),
    }
}

/// `text` without the values of credentials, which servers repeat in what they say of them.
pub(super) fn redacted(text: &str) -> String {
    redacted_of(text, variables())
}

fn redacted_of(text: &str, variables: impl Iterator<Item = (String, String)>) -> String {
    let is_secret = |name: &str| {
        ["AWS_", "AZURE_", "GOOGLE_"]
            .iter()
            .any(|part| name.starts_with(part))
            && ["KEY", "SECRET", "TOKEN", "PASSWORD", "SAS"]
                .iter()
                .any(|part| name.contains(part))
            && !name.ends_with("_FILE")
    };
    variables
        .filter(|(name, _)| is_secret(name))
        .flat_map(|(_, value)| {
            let signatures = signatures(&value);
            std::iter::once(value).chain(signatures)
        })
        // A shorter value is none, and its letters are everywhere.
        .filter(|value| value.len() >= 8)
        .fold(text.to_owned(), |text, value| {
            Secret::new(value).redact(&text)
        })
}

/// The signature of a shared access token, as it is sent and in the clear: whoever repeats an address in XML or JSON
/// escapes what stands between its parts.
fn signatures(token: &str) -> Vec<String> {
    let parts = token.split(['?', '&']);
    let raw = parts.filter_map(|part| part.strip_prefix("sig="));
    let mut found: Vec<String> = raw.map(str::to_owned).collect();
    if !found.is_empty()
        && let Ok(address) = Url::parse(&format!("token:?{}", token.trim_start_matches('?')))
    {
        let pairs = address.query_pairs().filter(|(key, _)| key == "sig");
        found.extend(pairs.map(|(_, value)| value.into_owned()));
    }
    found
}

/// Who is at the other end, as far as it decides how to call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Peer {
    Any,
    /// Without TLS.
    Plain,
    /// Without TLS, on this machine.
    Loopback,
}

impl Peer {
    fn of(endpoint: Option<&str>) -> Self {
        let url = endpoint.and_then(|endpoint| Url::parse(endpoint).ok());
        match url {
            Some(url) if url.scheme() == "http" => match url.host_str() {
                Some("localhost" | "127.0.0.1" | "[::1]") => Self::Loopback,
                _ => Self::Plain,
            },
            _ => Self::Any,
        }
    }
}

/// Makes clients that keep the time at which the store says that it answered.
#[derive(Debug)]
struct Connector(Peer);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = match self.0 {
            Peer::Any => ReqwestConnector::default().connect(options)?,
            // No certificate is ever checked, so a machine without a certificate store will do.
            Peer::Plain => ReqwestConnector::default()
                .connect(&options.clone().with_no_system_certificates(true))?,
            Peer::Loopback => {
                let client = reqwest::Client::builder()
                    .tls_certs_only([])
                    .no_proxy()
                    .timeout(Duration::from_secs(30))
                    .build();
                let client = client.map_err(|error| object_store::Error::Generic {
                    store: "HTTP",
                    source: Box::new(error),
                })?;
                HttpClient::new(client)
            }
        };
        Ok(HttpClient::new(Clocked(client)))
    }
}

#[derive(Debug)]
struct Clocked(HttpClient);

impl HttpService for Clocked {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let mut response = self.0.execute(request).await?;
            let date = response.headers().get("date");
            let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
            if let Some(date) = date {
                response.extensions_mut().insert(StoreTime(date));
            }
            Ok(response)
        })
    }
}

/// When a store answered, by its own clock.
#[derive(Clone, Copy, Debug)]
struct StoreTime(SystemTime);

/// When the store gave the answer that carries these extensions, by its own clock; to the second.
pub(super) fn store_time(extensions: &Extensions) -> Option<SystemTime> {
    extensions.get::<StoreTime>().map(|time| time.0)
}

/// Threads that do what a store is asked.
pub(super) struct Background(Option<Runtime>);

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Background")
    }
}

impl Background {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store")
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs `future` and waits for it, on whatever thread this is: unlike `block_on`, which panics in a task.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (sender, receiver) = mpsc::sync_channel(1);
        let runtime = self.0.as_ref().expect("it is taken when dropped");
        runtime.spawn(async move {
            // Nobody else holds the receiver, which is read below.
            let _ = sender.send(future.await);
        });
        receiver.recv().expect("a task of a store does not panic")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // The last store may be dropped in a task, where waiting for threads is forbidden.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::location::Location;

    fn set(name: &str, value: &str) -> impl Iterator<Item = (String, String)> {
        std::iter::once((name.to_owned(), value.to_owned()))
    }

    #[test]
    fn an_endpoint_with_credentials_is_refused_without_repeating_them() {
        let address = |text: &str| match Location::parse(text).unwrap() {
            Location::Remote(address) => address,
            Location::Folder(_) => panic!("{text} is an address"),
        };
        for (location, name, value, is_refused) in [
            (
                "s3://b/x",
                "AWS_ENDPOINT",
                "http://user:hunter2@127.0.0.1:1",
                true,
            ),
            (
                "s3://b/x",
                "AWS_ENDPOINT_URL_S3",
                "https://a.example?key=hunter2",
                true,
            ),
            (
                "az://b/x",
                "AZURE_STORAGE_ENDPOINT",
                "user:hunter2@a.example",
                true,
            ),
            (
                "gs://b/x",
                "GOOGLE_BASE_URL",
                "https://hunter2@a.example",
                true,
            ),
            (
                "gs://b/x",
                "AWS_ENDPOINT",
                "http://user:hunter2@127.0.0.1:1",
                false,
            ),
            ("s3://b/x", "AWS_ENDPOINT", "http://127.0.0.1:1", false),
            (
                "s3://b/x",
                "AWS_PROXY_URL",
                "http://user:hunter2@127.0.0.1:1",
                false,
            ),
        ] {
            let outcome = refuse_credentials_in_endpoints(&address(location), set(name, value));
            assert_eq!(outcome.is_err(), is_refused, "{name}={value}");
            if let Err(error) = outcome {
                let told = format!("{error} {error:?} {}", error.hint);
                assert!(told.contains(name) && !told.contains("hunter2"), "{told}");
            }
        }
    }

    #[test]
    fn a_signature_is_redacted_however_the_token_is_escaped() {
        let token = "sv=2024-01-01&sp=rwdl&sig=aGVsbG8%2Bd29ybGQ%3D";
        for shown in [
            "sv=2024-01-01&amp;sp=rwdl&amp;sig=aGVsbG8%2Bd29ybGQ%3D",
            r"sv=2024-01-01\u0026sp=rwdl\u0026sig=aGVsbG8+d29ybGQ=",
            token,
        ] {
            let variables = set("AZURE_STORAGE_SAS_KEY", token);
            let told = redacted_of(&format!("no such path: {shown}"), variables);
            assert!(!told.contains("d29ybGQ"), "{told}");
            assert!(told.starts_with("no such path: "), "{told}");
        }
    }
}
