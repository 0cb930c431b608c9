//! What axum takes for a small answer over kept-alive HTTP/1.1: `axum-peer ADDRESS PAGE`, on one thread.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("the first argument is the address to listen on")?;
    let page: &'static str = arguments.next().ok_or("the second argument is the page")?.leak();
    let router = Router::new().route("/", get(move || async move { ([(CONTENT_TYPE, "application/json")], page) }));
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        axum::serve(listener, router).await?;
        Ok(())
    })
}
