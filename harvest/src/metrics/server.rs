//! The metrics of a run over HTTP, for scrapers.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::Metrics;
use crate::error::Error;

/// What OpenMetrics 1.0 calls itself.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A socket for scrapers, bound before anything else is done, so that an address that cannot be had costs nothing.
#[derive(Debug)]
pub struct MetricsListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsListener {
    /// Takes the address; port 0 is any that is free.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn bind(address: SocketAddr) -> Result<Self, Error> {
        let bind = || -> std::io::Result<Self> {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bind().map_err(|source| Error::Listen { address, source })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers `GET /metrics` with the numbers as they are then, on `runtime`, until what this returns is dropped.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn serve(self, runtime: &Handle, metrics: Arc<Metrics>) -> Result<MetricsServer, Error> {
        let address = self.address;
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(self.listener)
            .map_err(|source| Error::Listen { address, source })?;
        let answer = move || {
            let text = metrics.text();
            async move { ([(CONTENT_TYPE, MEDIA_TYPE)], text) }
        };
        let router = Router::new().route("/metrics", get(answer));
        tracing::info!("metrics are at http://{address}/metrics");
        let serving = runtime.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!("metrics are no longer served: {error}");
            }
        });
        Ok(MetricsServer { serving })
    }
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    serving: JoinHandle<()>,
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::error::Status;

    async fn get(url: &str) -> (u16, String, String) {
        crate::teacher::install_tls();
        let client = reqwest::Client::builder()
            .tls_certs_only([])
            .no_proxy()
            .build()
            .unwrap();
        let response = client.get(url).send().await.unwrap();
        let status = response.status().as_u16();
        let media_type = response.headers().get(CONTENT_TYPE);
        let media_type = media_type.map_or("", |value| value.to_str().unwrap());
        let media_type = media_type.to_owned();
        (status, media_type, response.text().await.unwrap())
    }

    #[tokio::test]
    async fn a_scraper_gets_the_numbers_of_the_moment() {
        let listener = MetricsListener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.address();
        let metrics = Arc::new(Metrics::default());
        let server = listener.serve(&Handle::current(), Arc::clone(&metrics));
        let server = server.unwrap();
        let url = format!("http://{address}/metrics");
        metrics.row_failed();
        let (status, media_type, first) = get(&url).await;
        assert_eq!((status, media_type.as_str()), (200, MEDIA_TYPE));
        assert!(first.contains("harvest_rows_failed_total 1\n"), "{first}");
        metrics.row_failed();
        assert_eq!(get(&url).await.2, metrics.text());
        assert_eq!(get(&format!("http://{address}/")).await.0, 404);

        let error = MetricsListener::bind(address).unwrap_err();
        assert_eq!(error.status(), Status::UserError);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert!(error.hint().is_some());

        drop(server);
        // The task is over once the runtime has seen to it; the port is free then.
        while MetricsListener::bind(address).is_err() {
            tokio::task::yield_now().await;
        }
    }
}
