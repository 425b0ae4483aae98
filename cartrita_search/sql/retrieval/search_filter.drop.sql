DROP TYPE public.search_filter;
