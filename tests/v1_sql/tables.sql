-- The tables of Cartrita v1 that hold people, texts and vectors.

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE users (
    id serial PRIMARY KEY,
    name varchar(255) NOT NULL,
    email varchar(255) NOT NULL UNIQUE,
    password_hash varchar(255) NOT NULL,
    role varchar(50) DEFAULT 'user',
    is_admin boolean DEFAULT false,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TABLE knowledge_entries (
    id serial PRIMARY KEY,
    user_id integer REFERENCES users (id) ON DELETE CASCADE,
    title varchar(255) NOT NULL,
    content text NOT NULL,
    embedding vector(1536),
    tags text[] DEFAULT '{}',
    category varchar(100),
    content_type varchar(50) DEFAULT 'text',
    source_url text,
    confidence_score double precision DEFAULT 1.0,
    metadata jsonb DEFAULT '{}',
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE INDEX idx_knowledge_entries_embedding ON knowledge_entries
    USING ivfflat (embedding vector_cosine_ops) WITH (lists = 100);

CREATE TABLE knowledge_documents (
    id serial PRIMARY KEY,
    user_id integer REFERENCES users (id) ON DELETE CASCADE,
    title varchar(500) NOT NULL,
    content text,
    content_hash varchar(64) UNIQUE,
    file_path text,
    file_type varchar(50),
    metadata jsonb DEFAULT '{}',
    processing_status varchar(50) DEFAULT 'pending'
);

CREATE TABLE knowledge_chunks (
    id serial PRIMARY KEY,
    document_id integer REFERENCES knowledge_documents (id) ON DELETE CASCADE,
    user_id integer REFERENCES users (id) ON DELETE CASCADE,
    chunk_text text NOT NULL,
    chunk_index integer NOT NULL,
    chunk_tokens integer,
    embedding vector(1536),
    metadata jsonb DEFAULT '{}',
    created_at timestamptz DEFAULT now()
);

CREATE TABLE search_index (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id integer REFERENCES users (id) ON DELETE CASCADE,
    content_type varchar(50) NOT NULL,
    content_id varchar(255) NOT NULL,
    title text,
    content text,
    url text,
    tags text[] DEFAULT '{}',
    metadata jsonb DEFAULT '{}',
    embedding vector(1536),
    search_vector tsvector,
    last_indexed_at timestamp DEFAULT now(),
    UNIQUE (user_id, content_type, content_id)
);

CREATE TABLE mcp_tasks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id integer REFERENCES users (id) ON DELETE SET NULL,
    task_type varchar(100) NOT NULL,
    parameters jsonb DEFAULT '{}',
    result jsonb,
    status varchar(50) DEFAULT 'pending',
    error_message text,
    metadata jsonb DEFAULT '{}',
    embedding vector(1536)
);

CREATE TABLE knowledge_queries (
    id serial PRIMARY KEY,
    user_id integer REFERENCES users (id) ON DELETE SET NULL,
    query_text text NOT NULL,
    query_embedding vector(1536),
    search_type varchar(50) DEFAULT 'semantic',
    results_count integer DEFAULT 0,
    processing_time_ms integer,
    created_at timestamptz DEFAULT now()
);
