DROP TYPE public.vector_index_choice;
