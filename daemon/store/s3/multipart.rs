//! Large files go up in pieces.
//!
//! One put is simpler and cheaper, and leaves nothing behind when it breaks; so pieces are only for what is too large to be begun
//! again from its start. A kill leaves pieces that no listing shows and that cost money: the next put of the same key, which
//! carries the same bytes, removes them first.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rusoto_s3::{
    AbortMultipartUploadRequest, CompleteMultipartUploadRequest, CompletedMultipartUpload,
    CompletedPart, CreateMultipartUploadRequest, ListMultipartUploadsRequest, S3, S3Client,
    UploadPartRequest,
};

use super::errors::Failure;
use super::requests::{Answer, Call};
use super::upload::Payload;
use super::{S3Store, metadata};
use crate::store::ErrorKind;

/// Attempts to send one piece.
const ATTEMPTS_MAX: u32 = 4;

/// The wait before the second attempt; each further one is twice as long.
const WAIT: Duration = Duration::from_millis(300);

/// What goes up in pieces, and in which.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pieces {
    /// Largest file that is put at once. Merged parts of automatic compaction stay below it.
    pub(super) above: u64,
    /// Bytes of each piece but the last: all the same, because R2 wants that; held in memory, one at a time. S3 allows
    /// nothing below 5 MiB.
    pub(super) bytes: u64,
    /// Pieces of one object, a limit of S3. A file that would have more has larger ones.
    pub(super) most: u64,
}

/// For all stores.
pub(super) const PIECES: Pieces = Pieces { above: 64 << 20, bytes: 8 << 20, most: 10_000 };

/// An upload that has begun.
struct Begun<'a> {
    key: &'a str,
    id: String,
}

impl S3Store {
    /// Puts a file of `length` bytes in pieces.
    pub(super) async fn put_in_pieces(
        &self,
        key: &str,
        file: &Path,
        length: u64,
        note: Option<&str>,
    ) -> Result<(), Failure> {
        // One at a time, so that memory holds one piece.
        let _turn = self.in_pieces.lock().await;
        self.remove_begun(key).await;
        let request = CreateMultipartUploadRequest {
            bucket: self.settings.bucket.clone(),
            key: self.full(key),
            metadata: metadata(note),
            ..CreateMultipartUploadRequest::default()
        };
        let call = Call::new("s3:PutObject", Answer::Document("InitiateMultipartUploadResult"));
        let work = |s3: S3Client| async move { s3.create_multipart_upload(request).await };
        let id = self.requests.call(call, work).await?.0.upload_id;
        let id = id.ok_or_else(|| Failure::odd("an upload has no name"))?;
        let begun = Begun { key, id };
        let sent = async {
            let parts = self.send_pieces(&begun, file, length).await?;
            self.complete(&begun, parts).await
        };
        let sent = sent.await;
        if sent.is_err() {
            self.abort(&begun).await;
        } else if self.size_of(key).await? != Some(length) {
            return Err(Failure::odd("it confirms an upload, and the object is another"));
        }
        sent
    }

    async fn send_pieces(
        &self,
        begun: &Begun<'_>,
        file: &Path,
        length: u64,
    ) -> Result<Vec<CompletedPart>, Failure> {
        let unread = |error: io::Error| {
            Failure::new(ErrorKind::Unavailable, "cannot read the file to put").because(error)
        };
        let piece_bytes = self.pieces.bytes.max(length.div_ceil(self.pieces.most));
        let (disk, path) = (self.disk.clone(), file.to_owned());
        let mut reader = self.blocking.run(move || disk.open(&path)).await.map_err(unread)?;
        let (mut parts, mut left) = (Vec::new(), length);
        while left > 0 {
            let bytes = piece_bytes.min(left);
            left -= bytes;
            let read = self.blocking.run(move || {
                let mut piece = Vec::new();
                let read = reader.by_ref().take(bytes).read_to_end(&mut piece);
                read.map(|_| (reader, Bytes::from(piece)))
            });
            let (back, piece) = read.await.map_err(unread)?;
            reader = back;
            if piece.len() as u64 != bytes {
                return Err(unread(io::Error::other("the file has changed")));
            }
            let number = i64::try_from(parts.len() + 1).unwrap_or(i64::MAX);
            let e_tag = self.send_piece(begun, number, Payload::bytes(piece)).await?;
            parts.push(CompletedPart { e_tag: Some(e_tag), part_number: Some(number) });
        }
        Ok(parts)
    }

    /// Sends a piece, again if need be: with a hundred of them one is bound to fail, and that must not cost the others.
    async fn send_piece(
        &self,
        begun: &Begun<'_>,
        number: i64,
        piece: Payload,
    ) -> Result<String, Failure> {
        let mut attempt = 1;
        loop {
            let request = UploadPartRequest {
                bucket: self.settings.bucket.clone(),
                key: self.full(begun.key),
                part_number: number,
                upload_id: begun.id.clone(),
                ..UploadPartRequest::default()
            };
            let call = Call::new("s3:PutObject", Answer::Plain).carrying(piece.clone());
            let work = |s3: S3Client| async move { s3.upload_part(request).await };
            match self.requests.call(call, work).await {
                Ok((sent, _)) => {
                    return sent.e_tag.ok_or_else(|| Failure::odd("a piece has no ETag"));
                }
                Err(failure)
                    if failure.kind.passes()
                        && failure.code != "NoSuchUpload"
                        && attempt < ATTEMPTS_MAX =>
                {
                    tokio::time::sleep(WAIT * 2_u32.pow(attempt - 1)).await;
                    attempt += 1;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// The answer may be an error although its status is 200, because it begins before the work does: the document decides.
    async fn complete(&self, begun: &Begun<'_>, parts: Vec<CompletedPart>) -> Result<(), Failure> {
        let request = CompleteMultipartUploadRequest {
            bucket: self.settings.bucket.clone(),
            key: self.full(begun.key),
            upload_id: begun.id.clone(),
            multipart_upload: Some(CompletedMultipartUpload { parts: Some(parts) }),
            ..CompleteMultipartUploadRequest::default()
        };
        let call = Call::new("s3:PutObject", Answer::Document("CompleteMultipartUploadResult"));
        let work = |s3: S3Client| async move { s3.complete_multipart_upload(request).await };
        self.requests.call(call, work).await.map(drop)
    }

    /// Gives an upload up. If that fails, the next put of this key tries again.
    async fn abort(&self, begun: &Begun<'_>) {
        let request = AbortMultipartUploadRequest {
            bucket: self.settings.bucket.clone(),
            key: self.full(begun.key),
            upload_id: begun.id.clone(),
            ..AbortMultipartUploadRequest::default()
        };
        let call = Call::new("s3:AbortMultipartUpload", Answer::Plain);
        let work = |s3: S3Client| async move { s3.abort_multipart_upload(request).await };
        if let Err(failure) = self.requests.call(call, work).await {
            tracing::debug!(object = begun.key, %failure, "an upload in pieces is left over");
        }
    }

    /// Gives up what earlier attempts at this key left. Not every store can list uploads, and not every user may.
    async fn remove_begun(&self, key: &str) {
        let full = self.full(key);
        let request = ListMultipartUploadsRequest {
            bucket: self.settings.bucket.clone(),
            prefix: Some(full.clone()),
            ..ListMultipartUploadsRequest::default()
        };
        let call = Call::new(
            "s3:ListBucketMultipartUploads",
            Answer::Document("ListMultipartUploadsResult"),
        );
        let work = |s3: S3Client| async move { s3.list_multipart_uploads(request).await };
        let Ok((listed, _)) = self.requests.call(call, work).await else { return };
        let ours = listed.uploads.into_iter().flatten();
        for upload in ours.filter(|upload| upload.key.as_deref() == Some(full.as_str())) {
            if let Some(id) = upload.upload_id {
                self.abort(&Begun { key, id }).await;
            }
        }
    }
}
